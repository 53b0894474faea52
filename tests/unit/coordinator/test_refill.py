"""Which layers are to be computed again after a move. (That this is enough: tests/exactness/test_refill.py.)"""

from __future__ import annotations

from butterfly.coordinator.refill import Standing
from butterfly.specs import LayerRange, Plan, StagePlan

NUM_LAYERS = 6
THIRDS = (("a", 0, 2), ("b", 2, 4), ("c", 4, 6))


def plan(*stages: tuple[str, int, int]) -> Plan:
    return Plan(
        stages=tuple(
            StagePlan(
                worker=worker,
                start=start,
                end=end,
                embedding=start == 0,
                head=end == NUM_LAYERS,
                weight_bytes=0,
                kv_bytes=0,
                predicted_compute_s=0.0,
            )
            for worker, start, end in stages
        ),
        predicted_tpot_s=1,
        bound_tpot_s=1,
        binding="",
        kv_capacity_tokens=1,
        cost_s=1,
    )


def standing(*lost: str) -> Standing:
    known = Standing()
    known.serve(plan(*THIRDS))
    for worker in lost:
        known.forget(worker)
    return known


def test_the_layers_of_the_lost_one_are() -> None:
    assert standing("b").move(plan(("a", 0, 2), ("spare", 2, 4), ("c", 4, 6))).refill == LayerRange(start=2, end=4)


def test_one_that_came_back_under_its_name_has_nothing() -> None:
    assert standing("b").move(plan(*THIRDS)).refill == LayerRange(start=2, end=4)


def test_a_border_whose_keeper_is_lost_cannot_be_begun_from() -> None:
    assert standing("a").move(plan(("spare", 0, 2), ("b", 2, 4), ("c", 4, 6))).refill == LayerRange(start=0, end=2)
    assert standing("a", "b").move(plan(("c", 0, 6))).refill == LayerRange(start=0, end=4)


def test_a_new_border_counts_as_lost() -> None:
    """Though both have all of their layers, nobody has the hidden states between them."""
    after = plan(("a", 0, 1), ("x", 1, 2), ("b", 2, 4), ("c", 4, 6))
    assert standing().move(after).refill == LayerRange(start=0, end=2)


def test_nothing_is_kept_of_a_plan_that_never_served() -> None:
    known = standing("b")
    assert known.move(plan(("a", 0, 3), ("c", 3, 6))).refill is not None
    assert known.move(plan(("a", 0, 3), ("d", 3, 6))).refill is None


def test_before_the_first_plan_nobody_has_anything() -> None:
    assert Standing().move(plan(*THIRDS)).refill is None


def test_who_stands_is_named() -> None:
    assert standing("b").move(plan(*THIRDS)).workers == {"a", "c"}
