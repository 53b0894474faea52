"""Scenarios are consistent with each other, with their targets, and with what selects them."""

from __future__ import annotations

import pytest
from benchmarks.scenarios import GIGABIT, TARGETS, all_scenarios, select

SCENARIOS = all_scenarios(num_cores=2)


def test_names_are_unique() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)


def test_every_target_has_its_scenario_and_load() -> None:
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    for target in TARGETS:
        assert by_name[target.scenario].load(target.load)
        if target.against == "one node":
            assert by_name[target.scenario].with_one_node


def test_scenarios_with_targets_come_first() -> None:
    targeted = {target.scenario for target in TARGETS}
    assert {scenario.name for scenario in SCENARIOS[: len(targeted)]} == targeted


def test_the_round_trip_is_split_over_four_sides() -> None:
    assert GIGABIT.side_delay_s * 4 == GIGABIT.rtt_s
    assert GIGABIT.one_way_s * 2 == GIGABIT.rtt_s


def test_nodes_share_cores_only_where_there_are_too_few() -> None:
    shares = {scenario.nodes: scenario.cpu_share for scenario in SCENARIOS}
    assert shares == {1: None, 2: None, 4: 0.5}
    assert {scenario.cpu_share for scenario in all_scenarios(num_cores=4)} == {None}


def test_a_machine_with_one_core_gets_no_scenario_with_two_threads() -> None:
    assert {scenario.threads for scenario in all_scenarios(num_cores=1)} == {1}


def test_each_sequence_has_room_for_the_longest_request() -> None:
    for scenario in SCENARIOS:
        assert all(scenario.context >= load.input_tokens + load.output_tokens for load in scenario.loads)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["one-smollm2-1t"], ["one-smollm2-1t"]),
        (["one-*-1t"], ["one-llama-1b-1t", "one-smollm2-1t"]),
        (["two-smollm2-20mbit", "one-llama-1b-2t"], ["one-llama-1b-2t", "two-smollm2-20mbit-40ms"]),
        (["nothing"], []),
    ],
)
def test_patterns_match_anywhere_in_the_name(patterns: list[str], expected: list[str]) -> None:
    assert [scenario.name for scenario in select(SCENARIOS, patterns=patterns)] == expected


def test_quick_takes_a_few_scenarios_and_shortens_them() -> None:
    quick = select(SCENARIOS, quick=True)
    assert 0 < len(quick) < len(SCENARIOS)
    full = {scenario.name: scenario for scenario in SCENARIOS}
    for scenario in quick:
        for load in scenario.loads:
            assert load.requests <= full[scenario.name].load(load.name).requests
            assert load.requests >= load.concurrency


def test_a_pattern_finds_scenarios_that_are_not_quick() -> None:
    [scenario] = select(SCENARIOS, patterns=["four-smollm2-1gbit"], quick=True)
    assert scenario.nodes == 4


def test_models_filter() -> None:
    assert {scenario.model for scenario in select(SCENARIOS, models=["smollm2"])} == {"smollm2"}


def test_a_target_knows_its_better_side() -> None:
    higher = next(target for target in TARGETS if target.against == "peer")
    lower = next(target for target in TARGETS if target.better == "lower")
    assert higher.is_met(higher.value)
    assert not higher.is_met(higher.value * 0.99)
    assert lower.is_met(lower.value)
    assert not lower.is_met(lower.value * 1.01)
