"""Modelled stages against the planner's own formulas."""

from __future__ import annotations

import pytest

from butterfly.partitioning import costs
from butterfly.simulation.devices import ModelledStage
from butterfly.specs import Adoption, ModelFootprint, NodeSpec, SequenceStep, StagePlan, StepPlan

MODEL = ModelFootprint(
    layer_weight_bytes=(1000, 1000),
    embedding_bytes=0,
    head_bytes=600,
    kv_bytes_per_token=(10, 10),
    max_context=4096,
    hidden_bytes_per_token=64,
)
BANDWIDTH = 100.0


def stage(rows_per_weight_pass: int = costs.ROWS_PER_WEIGHT_PASS) -> ModelledStage:
    plan = StagePlan(
        worker="w0", start=0, end=2, embedding=False, head=True, weight_bytes=0, kv_bytes=0, predicted_compute_s=0.0
    )
    node = NodeSpec(name="w0", memory_bytes=1, memory_bandwidth_bytes_per_s=BANDWIDTH)
    return ModelledStage(plan, node, MODEL, rows_per_weight_pass)


def step(*parts: tuple[int, int], adopted: tuple[Adoption, ...] = ()) -> StepPlan:
    """A step with a sequence for each (start, number of tokens)."""
    sequences = tuple(
        SequenceStep(sequence_id=number, start=start, num_tokens=count, prompt_length=1)
        for number, (start, count) in enumerate(parts)
    )
    return StepPlan(step_id=1, slot=0, sequences=sequences, adopted=adopted)


def test_a_step_reads_all_weights_once_and_the_cache_of_each_sequence() -> None:
    timing = stage().run(step((9, 1), (19, 1)), 77, 5.0)
    assert (timing.received_s, timing.started_s, timing.received_bytes) == (5.0, 5.0, 77)
    assert timing.finished_s == pytest.approx(5.0 + (2600 + 30 * 20) / BANDWIDTH)


def test_from_so_many_tokens_on_arithmetic_binds() -> None:
    assert stage().run(step((0, 64)), 0, 0.0).finished_s == pytest.approx(2 * 26.0)
    assert stage(rows_per_weight_pass=4).run(step((0, 64)), 0, 0.0).finished_s == pytest.approx(16 * 26.0)
    assert stage(rows_per_weight_pass=4).run(step((0, 1)), 0, 0.0).finished_s == pytest.approx((2600 + 20) / BANDWIDTH)


def test_steps_queue_and_the_time_they_take_adds_up() -> None:
    busy = stage()
    first = busy.run(step((0, 32)), 0, 0.0)
    second = busy.run(step((0, 64)), 0, 1.0)
    assert (second.received_s, second.started_s) == (1.0, first.finished_s)
    assert busy.busy_s == pytest.approx(second.finished_s)


def test_reused_tokens_are_not_computed_but_a_copy_costs_its_bytes_twice() -> None:
    copy = Adoption(sequence_id=0, source_id=9, num_tokens=30, keeps_source=True)
    taken = Adoption(sequence_id=0, source_id=9, num_tokens=30, keeps_source=False)
    plain = stage().run(step((30, 1)), 0, 0.0).finished_s
    assert stage().run(step((30, 1), adopted=(taken,)), 0, 0.0).finished_s == plain
    copied = stage().run(step((30, 1), adopted=(copy,)), 0, 0.0).finished_s
    assert copied == pytest.approx(plain + 2 * 30 * 20 / BANDWIDTH)


def test_a_step_that_only_tells_news_takes_no_time() -> None:
    assert stage().run(step(), 0, 3.0).finished_s == 3.0
