"""Whether any placement fits, whatever it costs: quicker than a search for the best one.

With layers of one size only their numbers matter: the nodes with the most whole layers, and of all pairs of a first and
a last stage the one that leaves most. Else a dynamic programme over the sets of nodes: from which layers on a set can
have placed everything before. Both are exact. Beyond `MAX_SET_NODES` nodes with unequal layers or pins the second one
sees only the largest of them (pinned ones included), or, where too many must be used, only one order of them: what it
says fits does fit, but it may overlook a placement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import numpy.typing as npt

from butterfly.partitioning.problem import Problem

MAX_SET_NODES = 10

_Steps = npt.NDArray[numpy.float32]
"""[number of layers + 1, number of layers + 1]: 1 where a stage may begin at the one layer and end before the other."""


def fits_somehow(problem: Problem) -> bool:
    """Whether there is a placement for which `problem.fits`."""
    if not problem.num_nodes or problem.min_stages > problem.max_stages:
        return False
    if not problem.pins and len(set(problem.layer_bytes.tolist())) == 1:
        return _equal_layers_fit(problem)
    nodes = range(problem.num_nodes)
    if len(nodes) <= MAX_SET_NODES:
        return _some_set_fits(problem, nodes)
    if problem.min_stages > 1 or len(problem.pins) > MAX_SET_NODES:
        needed = nodes if problem.min_stages > 1 else problem.pins
        return _order_fits(problem, sorted(needed, key=lambda node: problem.pins.get(node, (0, 0))))
    by_room = sorted(nodes, key=lambda node: (node not in problem.pins, -problem.capacity[node], node))
    return _some_set_fits(problem, by_room[:MAX_SET_NODES])


# ----------------------------------------------------------------------------- layers of one size


def _equal_layers_fit(problem: Problem) -> bool:
    num_layers, first, last = problem.num_layers, problem.first_bytes, problem.last_bytes
    if problem.min_stages <= 1 and any(count == num_layers for count in whole_layers(problem, first + last)):
        return True
    plain = whole_layers(problem, 0)
    as_first, as_last = whole_layers(problem, first), whole_layers(problem, last)
    by_count = sorted((node for node in range(problem.num_nodes) if plain[node]), key=lambda node: -plain[node])
    for a in by_count:
        for b in by_count:
            if a == b or not as_first[a] or not as_last[b]:
                continue
            between = [plain[node] for node in by_count if node not in (a, b)][: max(0, problem.max_stages - 2)]
            num_stages = 2 + len(between)
            room = as_first[a] + as_last[b] + sum(between)
            if problem.min_stages <= num_stages <= problem.max_stages and room >= num_layers:
                return True
    return False


def whole_layers(problem: Problem, extra_bytes: int) -> list[int]:
    """How many of the equal layers each node can hold beside these bytes, activations counted."""
    layer = int(problem.layer_bytes[0])
    rooms = [int(capacity) - problem.stage_bytes - extra_bytes for capacity in problem.capacity]
    most = problem.num_layers
    return [0 if room < 0 else min(most, room // layer) if layer else most for room in rooms]


# ------------------------------------------------------------------------------------ any layers


def _some_set_fits(problem: Problem, nodes: Sequence[int]) -> bool:
    """`reached[set][e]`: whether stages on exactly these nodes can hold exactly the layers before e < num_layers."""
    num_nodes, num_layers = len(nodes), problem.num_layers
    steps = [_steps(problem, node) for node in nodes]
    ends = [_last_steps(problem, node) for node in nodes]
    pinned = sum(1 << i for i, node in enumerate(nodes) if node in problem.pins)
    sets = numpy.arange(1 << num_nodes)
    sizes = numpy.array([number.bit_count() for number in range(1 << num_nodes)])
    reached = numpy.zeros((1 << num_nodes, num_layers + 1), dtype=numpy.float32)
    reached[0, 0] = 1.0
    for num_stages in range(1, problem.max_stages + 1):
        for i in range(num_nodes):
            before = sets[(sizes == num_stages - 1) & (sets & (1 << i) == 0)]
            is_whole = ((before | 1 << i) & pinned) == pinned
            if num_stages >= problem.min_stages and bool((reached[before[is_whole]] @ ends[i]).any()):
                return True
            after = reached[before | 1 << i] + reached[before] @ steps[i]
            reached[before | 1 << i] = after > 0
    return False


def _order_fits(problem: Problem, nodes: Sequence[int]) -> bool:
    """The same for stages on all these nodes in this order."""
    if len(nodes) > problem.max_stages:
        return False
    reached = numpy.zeros(problem.num_layers + 1, dtype=numpy.float32)
    reached[0] = 1.0
    for node in nodes[:-1]:
        reached = (reached @ _steps(problem, node) > 0).astype(numpy.float32)
    return bool((reached @ _last_steps(problem, nodes[-1])).any())


def _steps(problem: Problem, node: int) -> _Steps:
    """Of any stage but the last one."""
    steps = _within(problem, node, is_last=False)
    steps[:, problem.num_layers] = 0.0
    return steps


def _last_steps(problem: Problem, node: int) -> _Steps:
    """[number of layers + 1]: 1 where the last stage may begin."""
    begins: _Steps = _within(problem, node, is_last=True)[:, problem.num_layers]
    return begins


def _within(problem: Problem, node: int, *, is_last: bool) -> _Steps:
    ends = problem.layer_ends_bytes
    needed = ends[None, :] - ends[:, None] + problem.stage_bytes + is_last * problem.last_bytes
    needed[0] += problem.first_bytes
    layers = numpy.arange(problem.num_layers + 1)
    allowed = (needed <= problem.capacity[node]) & (layers[None, :] > layers[:, None])
    if node in problem.pins:
        start, end = problem.pins[node]
        allowed &= (layers[:, None] == start) & (layers[None, :] == end)
    steps: _Steps = allowed.astype(numpy.float32)
    return steps
