"""Whom to give up when a step is late: rows of vitals and the verdict."""

from __future__ import annotations

import pytest

from butterfly.coordinator.suspicion import LateStep, Patience, Vital, find_suspect

STAGES = ("a", "b", "c")
NOW_S = 100.0
PATIENCE = Patience()
BEATING = {"a": Vital(99.9, 7), "b": Vital(99.8, 7), "c": Vital(99.7, 7)}
B_IS_SILENT = BEATING | {"b": Vital(98.5, 7)}


def verdict(vitals: dict[str, Vital], stalled_s: float, expected_s: float = 0.04) -> str | None:
    suspect = find_suspect(STAGES, vitals, NOW_S, LateStep(8, stalled_s, expected_s), PATIENCE)
    return None if suspect is None else suspect.worker


@pytest.mark.parametrize(
    ("vitals", "stalled_s", "expected_s", "expected"),
    [
        (B_IS_SILENT, 1.1, 0.04, "b"),
        (B_IS_SILENT, 0.9, 0.04, None),  # not late yet
        (B_IS_SILENT, 7.9, 1.0, None),  # a long step: eight times its prediction is allowed
        (B_IS_SILENT, 8.1, 1.0, "b"),
        (BEATING, 14.0, 0.04, None),  # all live: a slow machine looks like this for a while
        (BEATING, 16.0, 0.04, "a"),  # nobody has handed it on
        (BEATING | {"spare": Vital(50.0, 0)}, 2.0, 0.04, None),  # it has no stage, so no step waits for it
        (BEATING | {"a": Vital(99.9, 8)}, 16.0, 0.04, "b"),
        (BEATING | {"a": Vital(99.9, 8), "b": Vital(99.8, 9)}, 16.0, 0.04, "c"),
        (dict.fromkeys(STAGES, Vital(99.9, 8)), 16.0, 0.04, "c"),  # its result is lost
        (BEATING, 31.0, 1.1, None),
    ],
)
def test_a_late_step_and_a_missed_beat_make_a_suspect(
    vitals: dict[str, Vital], stalled_s: float, expected_s: float, expected: str | None
) -> None:
    assert verdict(vitals, stalled_s, expected_s) == expected


def test_the_reason_has_the_figures() -> None:
    suspect = find_suspect(STAGES, B_IS_SILENT, NOW_S, LateStep(8, 1.25, 0.04), PATIENCE)
    assert suspect is not None
    assert suspect.reason == "was silent for 1.5 s while a step was 1.2 s late"
