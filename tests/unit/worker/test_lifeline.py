from __future__ import annotations

import os
import threading

from butterfly.worker.lifeline import hold_lifeline


def test_the_lifeline_is_cut_when_the_other_end_closes() -> None:
    reader, writer = os.pipe()
    cut = threading.Event()
    thread = hold_lifeline(reader, cut.set)
    os.write(writer, b"chatter is not an end")
    assert not cut.wait(0.05)
    os.close(writer)
    thread.join(10)
    assert cut.is_set()
    os.close(reader)


def test_a_broken_descriptor_is_an_end_too() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    cut = threading.Event()
    hold_lifeline(reader, cut.set).join(10)
    assert cut.is_set()
