"""Each constraint that cannot be kept, with the figures."""

from __future__ import annotations

from collections.abc import Iterator

from butterfly.partitioning.problem import Problem
from butterfly.partitioning.wording import layer_range
from butterfly.specs import PlanConstraints


def violations(problem: Problem, constraints: PlanConstraints) -> tuple[str, ...]:
    """Why `problem` has no placement: at least one reason, those that concern everything first."""
    found = [*_of_all(problem, constraints), *_of_any_stage(problem), *_of_ends(problem), *_of_pins(problem)]
    if constraints.use_all:
        found += _of_all_used(problem)
    return tuple(found) or (_of_cuts(problem),)


def _of_all(problem: Problem, constraints: PlanConstraints) -> Iterator[str]:
    """Everything together against all memory, or all that so many nodes have."""
    model = problem.model
    weights = sum(model.layer_weight_bytes) + model.embedding_bytes + model.head_bytes
    kv = int(problem.layer_ends_bytes[-1]) - sum(model.layer_weight_bytes)
    needed = weights + kv
    rooms = sorted((max(0, int(capacity) - problem.stage_bytes) for capacity in problem.capacity), reverse=True)
    beside = f" beside {problem.stage_bytes:,} of activations on each" if problem.stage_bytes else ""
    what = f"weights ({weights:,}) and KV cache ({kv:,}) need {needed:,} bytes"
    if needed > sum(rooms):
        yield f"{what}, all nodes have {sum(rooms):,}{beside}"
    elif needed > sum(rooms[: problem.max_stages]):
        most = problem.max_stages
        limit = "no more are asked for" if constraints.max_nodes else f"the model has {most} layers"
        yield f"{what}, the {most} largest nodes have {sum(rooms[:most]):,}{beside} ({limit})"
    if constraints.use_all and problem.min_stages > problem.num_layers:
        yield f"all {problem.min_stages} nodes are to hold layers but the model has {problem.num_layers}"
    elif problem.min_stages > problem.max_stages:
        yield f"all {problem.min_stages} nodes are to hold layers but at most {constraints.max_nodes} are asked for"
    if len(problem.pins) > problem.max_stages:
        yield f"layers are pinned to {len(problem.pins)} nodes but at most {problem.max_stages} are asked for"


def _of_any_stage(problem: Problem) -> Iterator[str]:
    layer = int(problem.layer_bytes.argmax())
    needed = problem.needed_bytes(layer, layer + 1, is_first=False, is_last=False)
    if needed > problem.capacity.max():
        yield f"layer {layer} fits on no node: it needs {needed:,} bytes{_with(problem)}, {_largest_node(problem)}"


def _of_ends(problem: Problem) -> Iterator[str]:
    last = problem.num_layers - 1
    is_only = not last
    for what, layer in (("embedding", 0), ("head", last)):
        needed = problem.needed_bytes(
            layer, layer + 1, is_first=what == "embedding" or is_only, is_last=what == "head" or is_only
        )
        if needed > problem.capacity.max():
            yield (
                f"the {what} with layer {layer} fits on no node: they need {needed:,} bytes{_with(problem)}, "
                f"{_largest_node(problem)}"
            )


def _of_pins(problem: Problem) -> Iterator[str]:
    for node, (start, end) in sorted(problem.pins.items(), key=lambda pin: pin[1]):
        needed = problem.needed_bytes(start, end, is_first=start == 0, is_last=end == problem.num_layers)
        if needed > problem.capacity[node]:
            yield (
                f"node {problem.names[node]} is to hold {layer_range(start, end)}: {needed:,} bytes{_with(problem)}, "
                f"it has {problem.capacity[node]:,}"
            )


def _of_all_used(problem: Problem) -> Iterator[str]:
    layer = int(problem.layer_bytes.argmin())
    needed = problem.needed_bytes(layer, layer + 1, is_first=False, is_last=False)
    for name, capacity in zip(problem.names, problem.capacity, strict=True):
        if needed > capacity:
            yield f"node {name} is to hold a layer: {needed:,} bytes{_with(problem)}, it has {capacity:,}"


def _of_cuts(problem: Problem) -> str:
    """There is room for everything, but not in whole layers."""
    counts = [_most_layers(problem, node) for node in range(problem.num_nodes)]
    of_each = ", ".join(f"{name} {count}" for name, count in zip(problem.names, counts, strict=True))
    return (
        f"no cut of the {problem.num_layers} layers fits: a node can hold so many of them beside neither embedding "
        f"({problem.first_bytes:,} bytes) nor head ({problem.last_bytes:,} bytes): {of_each}"
    )


def _most_layers(problem: Problem, node: int) -> int:
    """Of layers that follow each other, anywhere in the model."""
    room = int(problem.capacity[node]) - problem.stage_bytes
    ends = problem.layer_ends_bytes
    fitting = ends.searchsorted(ends + room, side="right") - 1
    return max(0, *(int(end) - start for start, end in enumerate(fitting)))


def _with(problem: Problem) -> str:
    return " with KV cache and activations" if problem.stage_bytes else " with KV cache"


def _largest_node(problem: Problem) -> str:
    largest = int(problem.capacity.argmax())
    return f"the largest node {problem.names[largest]} has {problem.capacity[largest]:,}"
