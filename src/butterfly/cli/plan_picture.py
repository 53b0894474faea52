"""A picture of a plan: nodes with what fills their memory, the layers they hold, and the links between them.

The same plan gives the same bytes: element ids are hashed with a fixed salt, and no date is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from butterfly.cli.console import format_layers
from butterfly.partitioning.costs import COORDINATOR, find_link
from butterfly.partitioning.wording import sized
from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, NodeSpec, Plan, StagePlan

_COLOURS = {"weights": "#1f5fa8", "KV cache": "#8fb3dc", "activations": "#c8641e", "free": "#ececec"}
_STYLE: dict[Any, Any] = {"font.size": 8, "svg.hashsalt": "butterfly", "svg.fonttype": "path"}
_PER_ROW = 5
_WIDTH, _HEIGHT = 2.0, 1.3  # of a node's box
_GAP_X, _GAP_Y = 1.3, 0.9  # between boxes: room for what stands beside an arrow
_INCHES = 0.85  # per unit
_DPI = 130


@dataclass(frozen=True)
class _Box:
    x: float  # its left
    y: float  # its bottom

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + _WIDTH / 2, self.y + _HEIGHT / 2


def draw_plan(plan: Plan, model: ModelFootprint, cluster: ClusterSpec, path: Path) -> None:
    """Write the picture in the format that the path's suffix says. Raises OSError."""
    with matplotlib.rc_context(_STYLE):
        figure = plan_figure(plan, model, cluster)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=_DPI, metadata=metadata)


def plan_figure(plan: Plan, model: ModelFootprint, cluster: ClusterSpec) -> Figure:
    """The coordinator and the stages in their order, row by row; then the nodes that hold nothing."""
    nodes = {node.name: node for node in cluster.nodes}
    names = [COORDINATOR, *(stage.worker for stage in plan.stages)]
    boxes = _places(len(names) + len(plan.left_out))
    rows = -(-len(boxes) // _PER_ROW)
    columns = min(len(boxes), _PER_ROW)
    width, height = columns * (_WIDTH + _GAP_X), rows * (_HEIGHT + _GAP_Y) + 1.0
    figure = Figure(figsize=(max(width, 6.0) * _INCHES, height * _INCHES))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-_GAP_X / 2, max(width, 6.0) - _GAP_X / 2)
    axes.set_ylim(-height + _HEIGHT + 0.3, _HEIGHT + 0.7)
    axes.set_axis_off()
    _headline(axes, plan)
    _coordinator(axes, boxes[0])
    for box, stage in zip(boxes[1:], plan.stages, strict=False):
        _stage(axes, box, stage, nodes[stage.worker])
    for box, name in zip(boxes[len(names) :], plan.left_out, strict=True):
        _left_out(axes, box, name, nodes.get(name))
    _links(axes, boxes[: len(names)], names, plan, cluster)
    _legend(axes)
    return figure


def _places(count: int) -> list[_Box]:
    return [
        _Box(x=(index % _PER_ROW) * (_WIDTH + _GAP_X), y=-(index // _PER_ROW) * (_HEIGHT + _GAP_Y))
        for index in range(count)
    ]


def _headline(axes: Axes, plan: Plan) -> None:
    text = (
        f"TPOT {plan.predicted_tpot_s * 1e3:.2f} ms, TTFT {plan.predicted_ttft_s * 1e3:.0f} ms for "
        f"{plan.prompt_tokens} tokens, {plan.predicted_tokens_per_s:.1f} tokens/s with {plan.concurrency} at once; "
        f"bound by {plan.binding}"
    )
    axes.text(0.0, _HEIGHT + 0.4, text, weight="bold")


def _outline(axes: Axes, box: _Box, colour: str) -> None:
    shape = FancyBboxPatch(
        (box.x, box.y), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor="white", edgecolor=colour
    )
    axes.add_patch(shape)


def _coordinator(axes: Axes, box: _Box) -> None:
    _outline(axes, box, "#8a8a8a")
    axes.text(*box.middle, COORDINATOR, ha="center", va="center", style="italic")


def _stage(axes: Axes, box: _Box, stage: StagePlan, node: NodeSpec) -> None:
    """Name, layers, time, and a bar of its memory."""
    _outline(axes, box, "black")
    left, top = box.x + 0.12, box.y + _HEIGHT
    axes.text(left, top - 0.22, stage.worker, weight="bold", va="center")
    layers = format_layers(stage.start, stage.end, embedding=stage.embedding, head=stage.head)
    axes.text(left, top - 0.47, f"layers {layers}", va="center")
    axes.text(left, top - 0.72, f"{stage.predicted_compute_s * 1e3:.2f} ms per token", va="center")
    used = (stage.weight_bytes, stage.kv_bytes, stage.activation_bytes)
    _memory_bar(axes, box, [*used, max(0, node.memory_bytes - sum(used))])
    share = f"{sized(sum(used))} of {sized(node.memory_bytes)}"
    axes.text(left, box.y + 0.13, share, va="center", fontsize=7)


def _memory_bar(axes: Axes, box: _Box, parts: Sequence[int]) -> None:
    left, room = box.x + 0.12, _WIDTH - 0.24
    whole = sum(parts)
    for size, colour in zip(parts, _COLOURS.values(), strict=True):
        width = room * size / whole if whole else 0.0
        axes.add_patch(Rectangle((left, box.y + 0.25), width, 0.2, facecolor=colour, edgecolor="none"))
        left += width


def _left_out(axes: Axes, box: _Box, name: str, node: NodeSpec | None) -> None:
    _outline(axes, box, "#c4c4c4")
    has = f"\n{sized(node.memory_bytes)}" if node is not None else ""
    axes.text(*box.middle, f"{name}{has}\nholds nothing", ha="center", va="center", color="#8a8a8a")


def _links(axes: Axes, boxes: Sequence[_Box], names: Sequence[str], plan: Plan, cluster: ClusterSpec) -> None:
    """An arrow for each hop of a token; the way back is a line of text at the coordinator."""
    for i, stage in enumerate(plan.stages):
        link = find_link(cluster, names[i], names[i + 1])
        _arrow(axes, boxes[i], boxes[i + 1], _label(stage.predicted_hop_s, link, stage.codec))
    back = find_link(cluster, names[-1], COORDINATOR)
    text = f"back from {names[-1]}: {_label(plan.return_hop_s, back).replace(chr(10), ', ')}"
    axes.text(boxes[0].x, boxes[0].y - 0.2, text, va="center", fontsize=7)


def _label(hop_s: float, link: LinkSpec, codec: str = "") -> str:
    text = f"{hop_s * 1e3:.2f} ms\n{link.bandwidth_bytes_per_s / 1e6:.4g} MB/s"
    return f"{text}\n{codec}" if codec else text


def _arrow(axes: Axes, source: _Box, target: _Box, label: str) -> None:
    if source.y == target.y:
        start, end = (source.x + _WIDTH, source.middle[1]), (target.x, target.middle[1])
        place = ((start[0] + end[0]) / 2, start[1] + 0.05)
    else:  # the next row begins
        start, end = (source.middle[0], source.y), (target.middle[0], target.y + _HEIGHT)
        place = (source.middle[0], source.y - 0.5)
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    )
    axes.text(*place, label, ha="center", va="bottom", fontsize=7)


def _legend(axes: Axes) -> None:
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in _COLOURS.values()]
    axes.legend(
        handles,
        list(_COLOURS),
        loc="lower left",
        bbox_to_anchor=(0.03, 0.0),
        ncols=len(_COLOURS),
        frameon=False,
        fontsize=7,
    )
