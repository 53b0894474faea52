"""What solvers of fleets share: which fleets are allowed, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from butterfly.partitioning.pipeline_speeds import Pipeline, PipelineSpeeds, Question

BETTER = 1e-9  # relative: what is faster by less is as fast


class FoundFleet(NamedTuple):
    """Pipelines with the tokens per second of all, and what no fleet of the allowed ones exceeds."""

    pipelines: tuple[Pipeline, ...]
    tokens_per_s: float
    bound_tokens_per_s: float


@dataclass(frozen=True)
class FleetRules:
    """What every fleet keeps, beside each node being in one pipeline at most."""

    useful: tuple[int, ...]  # nodes that may hold layers
    pinned: frozenset[int]  # nodes that must
    most_nodes: int
    use_all: bool
    most_pipelines: int
    num_streams: int  # in all pipelines together

    @classmethod
    def of(cls, question: Question, speeds: PipelineSpeeds, max_pipelines: int) -> FleetRules:
        """`max_pipelines`: 0 is any number."""
        problem, constraints = question.problem, question.constraints
        nodes = range(problem.num_nodes)
        useful = tuple(
            node for node in nodes if constraints.use_all or node in problem.pins or not _is_useless(speeds, node)
        )
        num_streams = question.workload.concurrency
        most_nodes = constraints.max_nodes or problem.num_nodes
        most = min(len(useful), most_nodes, num_streams, _most_in_memory(question, useful))
        return cls(
            useful=useful,
            pinned=frozenset(problem.pins),
            most_nodes=most_nodes,
            use_all=constraints.use_all,
            most_pipelines=min(most, max_pipelines) if max_pipelines else most,
            num_streams=num_streams,
        )

    def allows(self, used: Sequence[int]) -> bool:
        """Whether a fleet may use exactly these nodes."""
        if self.use_all and len(used) < len(self.useful):
            return False
        return len(used) <= self.most_nodes and self.pinned <= set(used)


def _is_useless(speeds: PipelineSpeeds, node: int) -> bool:
    """Not even the smallest layer fits, with the KV cache of one stream."""
    problem = speeds.question.problem
    alone = Pipeline((node,), 1)
    return speeds.missing_layers(alone) >= problem.num_layers


def _most_in_memory(question: Question, useful: Sequence[int]) -> int:
    """As many copies of the weights as there is room for, activations counted."""
    problem, model = question.problem, question.model
    room = sum(max(0, int(problem.capacity[node]) - problem.stage_bytes) for node in useful)
    copy = sum(model.layer_weight_bytes) + model.embedding_bytes + model.head_bytes
    return room // copy if copy else len(useful)
