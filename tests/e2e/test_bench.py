"""`butterfly bench` against a real server."""

from __future__ import annotations

import os
import signal
import subprocess

import msgspec

from butterfly.loadgen import LoadReport
from tests.support.product import BUTTERFLY, ENDING_S, PATIENCE_S, Server, eventually, run

SIZES = ("--input-tokens", "24", "--output-tokens", "6", "--json")


def test_every_request_has_the_tokens_asked_for(server: Server) -> None:
    ended = run("bench", server.url, "--requests", "4", "--concurrency", "2", *SIZES)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = msgspec.json.decode(ended.stdout, type=LoadReport)
    assert (report.num_completed, report.num_failed, report.notes) == (4, 0, ())
    assert [(r.num_input_tokens, r.num_output_tokens, r.finish_reason) for r in report.requests] == [
        (24, 6, "length")
    ] * 4
    assert report.ttft_s is not None
    assert report.tpot_s is not None
    assert report.e2e_s is not None
    assert 0 < report.tpot_s.p50 < report.e2e_s.p50
    assert 0 < report.ttft_s.p50 < report.e2e_s.p50


def test_a_chat_at_a_rate_has_about_the_length_asked_for(server: Server) -> None:
    ended = run("bench", server.url, "--chat", "--requests", "3", "--rate", "20", *SIZES, "--input-tokens", "60")
    report = msgspec.json.decode(ended.stdout, type=LoadReport)
    assert (ended.returncode, report.num_completed, report.num_output_tokens) == (0, 3, 18)
    assert all(abs(record.num_input_tokens - 60) <= 6 for record in report.requests)


def test_ctrl_c_shows_what_there_is_and_leaves_nothing_running(server: Server) -> None:
    command = [*BUTTERFLY, "bench", server.url, "--requests", "1000", "--warmup", "0", "--concurrency", "2", *SIZES]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert eventually(lambda: server.status().running_requests == 2, PATIENCE_S)
            os.kill(process.pid, signal.SIGINT)
            printed, complaint = process.communicate(timeout=ENDING_S)
        finally:
            process.kill()
    assert (process.returncode, complaint) == (130, "")
    assert not msgspec.json.decode(printed, type=LoadReport).is_complete
    assert eventually(lambda: server.status().running_requests == 0, ENDING_S)
