"""Why nothing fits: every violation with its figures, and changes that do fit, none smaller."""

from __future__ import annotations

from itertools import combinations, permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.partitioning.feasibility import MAX_SET_NODES, fits_somehow
from butterfly.partitioning.infeasibility import refuse
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import ClusterSpec, LayerPin, ModelFootprint, PlanConstraints, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

FREE = PlanConstraints()
WORKLOAD = WorkloadSpec(concurrency=1, context=10)


def fits(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec = WORKLOAD,
    constraints: PlanConstraints = FREE,
) -> bool:
    return fits_somehow(Problem.of(model, cluster, workload, constraints))


# ----------------------------------------------------------------------------- does anything fit


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_layers = draw(st.integers(1, 6))
    num_nodes = draw(st.integers(1, 4))
    size = st.integers(1, 60)
    equal = draw(st.booleans())
    layers = [draw(size)] * num_layers if equal else draw(st.lists(size, min_size=num_layers, max_size=num_layers))
    model = msgspec.structs.replace(
        make_model(num_layers, embedding_bytes=draw(st.integers(0, 80)), head_bytes=draw(st.integers(0, 80)), kv=0),
        layer_weight_bytes=tuple(layers),
        activation_bytes_per_token=draw(st.sampled_from([0, 0, 1, 5])),
    )
    cluster = make_cluster(*draw(st.lists(st.integers(1, 200), min_size=num_nodes, max_size=num_nodes)))
    pins = []
    if draw(st.booleans()):
        start = draw(st.integers(0, num_layers - 1))
        pins.append(LayerPin(node="w0", start=start, end=draw(st.integers(start + 1, num_layers))))
    constraints = PlanConstraints(
        layers=tuple(pins),
        max_nodes=draw(st.integers(0, num_nodes)),
        use_all=draw(st.sampled_from([False, False, True])),
    )
    return Problem.of(model, cluster, WorkloadSpec(context=1, max_num_batched_tokens=2), constraints)


def some_placement_fits(problem: Problem) -> bool:
    return any(
        problem.fits(Placement(nodes, (*cuts, problem.num_layers)))
        for count in range(1, min(problem.num_nodes, problem.num_layers) + 1)
        for nodes in permutations(range(problem.num_nodes), count)
        for cuts in combinations(range(1, problem.num_layers), count - 1)
    )


@settings(max_examples=1000, deadline=None)
@given(problems())
def test_it_says_what_trying_everything_says(problem: Problem) -> None:
    assert fits_somehow(problem) == some_placement_fits(problem)


def test_beyond_the_exact_size_what_it_says_fits_does_fit() -> None:
    sizes = (70, 80, 90, 100)
    model = msgspec.structs.replace(
        make_model(len(sizes), embedding_bytes=0, head_bytes=0, kv=0), layer_weight_bytes=sizes
    )
    small = [10] * MAX_SET_NODES
    cluster = make_cluster(*small, 190, 150)
    assert fits(model, cluster)  # in one order of the two large ones
    assert not fits(model, make_cluster(*small, 190, 149))
    assert not fits(model, cluster, WORKLOAD, PlanConstraints(use_all=True))
    pinned = PlanConstraints(layers=(LayerPin(node="w0", start=0, end=1),))
    assert not fits(model, cluster, WORKLOAD, pinned)
    assert fits(model, make_cluster(70, *small, 170, 100), WORKLOAD, pinned)


# --------------------------------------------------------------------------------- what is said


def refused(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec = WORKLOAD,
    constraints: PlanConstraints = FREE,
) -> tuple[str, tuple[str, ...]]:
    assert not fits(model, cluster, workload, constraints)
    error = refuse(model, cluster, workload, constraints)
    assert all(violation in str(error) for violation in error.violations)
    assert "\n" not in str(error)
    return str(error), error.violations


def test_too_much_in_all_says_how_much_is_missing_and_what_would_do() -> None:
    model, cluster = make_model(), make_cluster(300, 300)
    message, violations = refused(model, cluster)
    assert violations == ("weights (710) and KV cache (60) need 770 bytes, all nodes have 600",)
    assert message.startswith("the model does not fit with 1 x 10 tokens of KV cache: weights (710)")
    assert message.endswith("; one more node with 220 bytes or 90 more bytes on each node would fit")
    assert fits(model, make_cluster(390, 390))
    assert not fits(model, make_cluster(389, 389))
    assert fits(model, make_cluster(300, 300, 220))
    assert not fits(model, make_cluster(300, 300, 219))


def test_too_much_context_and_too_many_streams() -> None:
    model, cluster = make_model(kv=10, max_context=200), make_cluster(550, 560)
    message, _ = refused(model, cluster, WorkloadSpec(context=6, concurrency=3))
    assert "fit with 3 x 6 tokens of KV cache" in message
    assert "; a context of 2 tokens or a concurrency of 1 or " in message
    assert fits(model, cluster, WorkloadSpec(context=2, concurrency=3))
    assert not fits(model, cluster, WorkloadSpec(context=3, concurrency=3))


def test_the_context_asked_for_counts_up_to_the_models() -> None:
    message, _ = refused(make_model(kv=10, max_context=64), make_cluster(550, 560), WorkloadSpec(context=1000))
    assert "1 x 64 tokens" in message


def test_fewer_bits_are_said_where_the_number_of_weights_is_known() -> None:
    model = msgspec.structs.replace(
        make_model(layer_bytes=1000, embedding_bytes=0, head_bytes=0, kv=0), num_layer_params=(1000,) * 6
    )
    message, _ = refused(model, make_cluster(2000, 2100))
    assert "; 5.3 bits per weight (now 8.0) or " in message  # three layers of 662 in 2000, but 675 with 5.4 bits
    tiny, _ = refused(model, make_cluster(700, 700))
    assert "bits" not in tiny  # nobody has weights of less than two


def test_a_layer_and_ends_that_fit_nowhere() -> None:
    model = msgspec.structs.replace(make_model(kv=0), layer_weight_bytes=(10, 10, 90, 10, 10, 10))
    _, violations = refused(model, make_cluster(50, 40, 30, 20, 80))
    assert violations[1:] == ("layer 2 fits on no node: it needs 90 bytes with KV cache, the largest node w4 has 80",)
    ends = make_model(layer_bytes=10, embedding_bytes=70, head_bytes=60, kv=0)
    _, violations = refused(ends, make_cluster(*[65] * 6))
    assert violations == (
        "the embedding with layer 0 fits on no node: they need 80 bytes with KV cache, the largest node w0 has 65",
        "the head with layer 5 fits on no node: they need 70 bytes with KV cache, the largest node w0 has 65",
    )


def test_activations_count_on_every_stage() -> None:
    model = msgspec.structs.replace(make_model(kv=0), activation_bytes_per_token=1)
    workload = WorkloadSpec(context=1, max_num_batched_tokens=100)
    message, violations = refused(model, make_cluster(450, 450), workload)
    assert violations[0] == (
        "weights (710) and KV cache (0) need 710 bytes, all nodes have 700 beside 100 of activations on each"
    )
    assert "one more node with 200 bytes" in message


def test_room_enough_but_not_in_whole_layers() -> None:
    model, cluster = make_model(embedding_bytes=0, head_bytes=0, kv=0), make_cluster(290, 390)
    _, violations = refused(model, cluster)
    assert violations == (
        "no cut of the 6 layers fits: a node can hold so many of them beside neither embedding (0 bytes) nor head "
        "(0 bytes): w0 2, w1 3",
    )


def test_a_limit_of_nodes() -> None:
    model, cluster = make_model(kv=0), make_cluster(300, 300, 300)
    message, violations = refused(model, cluster, constraints=PlanConstraints(max_nodes=2))
    assert violations == (
        "weights (710) and KV cache (0) need 710 bytes, the 2 largest nodes have 600 (no more are asked for)",
    )
    assert "; 3 nodes instead of 2 or " in message
    _, violations = refused(
        make_model(num_layers=2), make_cluster(130, 130, 130), constraints=PlanConstraints(use_all=True)
    )
    assert "all 3 nodes are to hold layers but the model has 2" in violations


def test_nodes_that_are_all_to_be_used() -> None:
    message, violations = refused(make_model(), make_cluster(9000, 20), constraints=PlanConstraints(use_all=True))
    assert violations == ("node w1 is to hold a layer: 110 bytes with KV cache, it has 20",)
    assert message.endswith("; leaving nodes out or 140 more bytes on each node would fit")  # it would be an end
    _, violations = refused(
        make_model(), make_cluster(900, 900, 900), constraints=PlanConstraints(use_all=True, max_nodes=2)
    )
    assert violations == ("all 3 nodes are to hold layers but at most 2 are asked for",)


def test_pins_and_exclusions() -> None:
    pins = PlanConstraints(layers=(LayerPin(node="w1", start=0, end=4),))
    message, violations = refused(make_model(), make_cluster(9000, 300), constraints=pins)
    assert violations == ("node w1 is to hold layers 0-3: 490 bytes with KV cache, it has 300",)
    assert "; layers that are not pinned or " in message
    message, _ = refused(make_model(), make_cluster(9000, 300), constraints=PlanConstraints(exclude=("w0",)))
    assert "; using node w0 or one more node with 490 bytes or 470 more bytes" in message


def test_what_no_single_change_helps() -> None:
    constraints = PlanConstraints(layers=(LayerPin(node="w0", start=0, end=1),), max_nodes=1)
    message, violations = refused(make_model(), make_cluster(20, 900), constraints=constraints)
    assert violations == ("node w0 is to hold layer 0: 160 bytes with KV cache, it has 20",)
    assert message.endswith("; layers that are not pinned would fit")
    both = PlanConstraints(exclude=("w1",), layers=(LayerPin(node="w0", start=0, end=1),), max_nodes=1)
    message, _ = refused(make_model(), make_cluster(20, 900), constraints=both)
    assert message.endswith("; no single change would fit")


@pytest.mark.parametrize("num_nodes", [5, 64])
def test_many_nodes_are_no_trouble(num_nodes: int) -> None:
    model = make_model(num_layers=80, layer_bytes=100, kv=1)
    message, _ = refused(model, make_cluster(*[115 + node % 7 for node in range(num_nodes)]))
    assert "more bytes on each node would fit" in message
