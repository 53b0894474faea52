"""Why each boundary of a plan is where it is, and why nodes are left out: by evaluating what is next to the plan."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.partitioning.placement_edits import is_within_memory, moved, with_node, with_node_instead
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.wording import COST_NAMES, difference, layer_range, sized
from butterfly.specs import PlanConstraints


def boundary_reasons(problem: Problem, placement: Placement, constraints: PlanConstraints) -> list[str]:
    """One line for each boundary: what keeps the layer before it, and the one after it, where they are."""
    pinned = {pin.node for pin in constraints.layers}
    lines = []
    for boundary, end in enumerate(placement.ends[:-1]):
        left, right = (problem.names[node] for node in placement.nodes[boundary : boundary + 2])
        held = [name for name in (left, right) if name in pinned]
        if held:
            reasons = [f"the layers of {' and '.join(held)} are pinned"]
        else:
            reasons = [_why_not(problem, placement, boundary, step) for step in (1, -1)]
        lines.append(f"{left} | {right} before layer {end}: {'; '.join(reasons)}")
    return lines


def _why_not(problem: Problem, placement: Placement, boundary: int, step: int) -> str:
    """Why the boundary is not one layer further back (step 1) or ahead (-1)."""
    ranges = placement.ranges()
    taker, giver = (boundary, boundary + 1) if step > 0 else (boundary + 1, boundary)
    end = placement.ends[boundary]
    layer = end if step > 0 else end - 1
    name = problem.names[placement.nodes[taker]]
    what = f"layer {layer} on {name}"
    if ranges[giver][2] - ranges[giver][1] == 1:
        what += f", without {problem.names[placement.nodes[giver]]},"
    other = moved(placement, boundary, step)
    if not is_within_memory(problem, other):
        return f"{what} does not fit ({_room(problem, placement, taker, other)})"
    change = difference(problem.evaluate(placement).cost_s, problem.evaluate(other).cost_s)
    return f"{what} would make {COST_NAMES[problem.objective]} {change}"


def _room(problem: Problem, placement: Placement, stage: int, other: Placement) -> str:
    """What the stage's node has left, and what it would need more under the other placement."""
    node = placement.nodes[stage]
    now, then = _needed(problem, placement, node), _needed(problem, other, node)
    free = int(problem.capacity[node]) - now
    return f"{sized(free)} of {sized(int(problem.capacity[node]))} free, it needs {sized(then - now)} more"


def _needed(problem: Problem, placement: Placement, node: int) -> int:
    stage = placement.nodes.index(node)
    _, start, end = placement.ranges()[stage]
    return problem.needed_bytes(start, end, is_first=stage == 0, is_last=stage == len(placement.nodes) - 1)


def left_out_reasons(
    problem: Problem, placement: Placement, left_out: Sequence[str], constraints: PlanConstraints
) -> list[tuple[str, str]]:
    """(node, reason) in the order given: excluded, too small, or what taking it in would do."""
    return [(name, _why_left_out(problem, placement, name, constraints)) for name in left_out if name in problem.names]


def _why_left_out(problem: Problem, placement: Placement, name: str, constraints: PlanConstraints) -> str:
    if name in constraints.exclude:
        return "excluded"
    node = problem.names.index(name)
    smallest = int(problem.layer_bytes.argmin())
    needed = problem.needed_bytes(smallest, smallest + 1, is_first=False, is_last=False)
    if needed > problem.capacity[node]:
        return f"too small: a stage of {layer_range(smallest, smallest + 1)} needs {sized(needed)}, it has " + sized(
            int(problem.capacity[node])
        )
    num_stages = len(placement.nodes)
    is_limited = bool(constraints.max_nodes) and num_stages >= constraints.max_nodes
    is_full = is_limited or num_stages == problem.num_layers
    edits = with_node_instead(placement, node) if is_full else with_node(placement, node)
    costs_s = [problem.evaluate(other).cost_s for other in edits if is_within_memory(problem, other)]
    limit = f"at most {constraints.max_nodes} nodes are to be used, and " if is_limited else ""
    if not costs_s:
        return f"{limit}no place among the others suits its memory"
    how = "in another's place" if is_full else "beside the others"
    change = difference(problem.evaluate(placement).cost_s, min(costs_s))
    return f"{limit}{how} it would make {COST_NAMES[problem.objective]} {change}"
