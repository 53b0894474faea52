"""Whom to give up when a step is late: rows of vitals and the verdict."""

from __future__ import annotations

import pytest

from butterfly.coordinator.suspicion import LateStep, Patience, Vital, Watch, find_suspect

STAGES = ("a", "b", "c")
NOW_S = 100.0
PATIENCE = Patience()
BEATING = {"a": Vital(99.9, 7), "b": Vital(99.8, 7), "c": Vital(99.7, 7)}
B_IS_SILENT = BEATING | {"b": Vital(98.5, 7)}
B_IS_OFTEN_SILENT = BEATING | {"b": Vital(98.5, 7, longest_gap_s=0.6)}


def verdict(vitals: dict[str, Vital], stalled_s: float, expected_s: float = 0.04) -> str | None:
    suspect = find_suspect(STAGES, vitals, NOW_S, LateStep(8, stalled_s, expected_s), PATIENCE)
    return None if suspect is None else suspect.worker


@pytest.mark.parametrize(
    ("vitals", "stalled_s", "expected_s", "expected"),
    [
        (B_IS_SILENT, 0.7, 0.04, "b"),
        (B_IS_SILENT, 0.5, 0.04, None),  # not late yet
        (B_IS_SILENT, 2.9, 1.0, None),  # a long step: three times its prediction is allowed
        (B_IS_SILENT, 3.1, 1.0, "b"),
        (B_IS_OFTEN_SILENT, 1.1, 0.04, None),  # its beats come that late at times
        (BEATING | {"b": Vital(98.1, 7, longest_gap_s=0.6)}, 1.1, 0.04, "b"),
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


def test_how_irregular_beats_were_lately_is_remembered() -> None:
    watch, late = Watch(PATIENCE), LateStep(8, 2.0, 0.04)
    for beat_s in (97.0, 97.25, 98.0, 98.25, 98.5):
        watch.hear("b", beat_s)
    assert watch.suspect(("b",), 98.5 + 2.2, late) is None  # three times 0.75 s
    assert watch.suspect(("b",), 98.5 + 2.3, late) is not None
    watch.forget("b")
    watch.hear("b", 98.5)
    assert watch.suspect(("b",), 98.5 + 0.9, late) is not None


def test_a_gap_is_forgotten_after_forty_beats() -> None:
    watch = Watch(PATIENCE)
    for beat_s in (0.0, 5.0, *(5.25 + 0.25 * number for number in range(40))):
        watch.hear("b", beat_s)
    assert watch.suspect(("b",), 15.0 + 1.0, LateStep(8, 2.0, 0.04)) is not None
