"""Fleets on more nodes than can be parted in every way: good ones for each number of pipelines, made better by moves.

Pipelines are judged by their bound (quick, and close to what their plan gives) while nodes and streams move; only the
most promising fleets are planned. Work is counted, not time: the same question has the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy

from butterfly.partitioning.fleets import BETTER, FleetRules, FoundFleet
from butterfly.partitioning.pipeline_speeds import Pipeline, PipelineSpeeds

MAX_WORK = 400_000  # nodes in all pipelines that are judged
MAX_SIZES = 12  # numbers of pipelines that are tried
FINALISTS = 3  # fleets that are planned

_Worth = tuple[int, float]
"""Minus the layers that memory falls short by, then tokens per second: larger is better."""


@dataclass
class _Draft:
    """A fleet under way: the nodes and the streams of each pipeline."""

    groups: list[tuple[int, ...]]  # ascending
    streams: list[int]

    def pipelines(self) -> tuple[Pipeline, ...]:
        return tuple(Pipeline(group, streams) for group, streams in zip(self.groups, self.streams, strict=True))


def search_fleet(speeds: PipelineSpeeds, rules: FleetRules, single: tuple[int, ...]) -> FoundFleet | None:
    """A good fleet of two pipelines or more; None when none was found that fits. Nothing is proven: its bound is
    infinite. `single`: the nodes of the best single pipeline, if there is one: others may take what it leaves out."""
    hunt = _Hunt(speeds, rules)
    sizes = list(range(2, rules.most_pipelines + 1))
    while len(sizes) > MAX_SIZES:
        sizes = sizes[::2]
    starts = [hunt.start(size, first) for size in sizes for first in ((), single)]
    drafts = [hunt.improved(start, MAX_WORK // len(starts)) for start in starts]
    drafts.sort(key=lambda draft: (hunt.worth(draft), -len(draft.groups)), reverse=True)
    different = {frozenset(draft.pipelines()): draft for draft in reversed(drafts)}
    found = [hunt.planned(draft) for draft in list(reversed(different.values()))[:FINALISTS]]
    return max((fleet for fleet in found if fleet is not None), key=lambda fleet: fleet.tokens_per_s, default=None)


class _Hunt:
    def __init__(self, speeds: PipelineSpeeds, rules: FleetRules) -> None:
        self._speeds, self._rules = speeds, rules
        self._batch = speeds.question.problem.costs_of(1)
        self._layer_s = self._batch.layer_s.sum(axis=1)
        self._near_s = self._batch.hop_s + self._batch.hop_s.T
        self._worths: dict[Pipeline, _Worth] = {}  # by form
        self._work = 0

    def start(self, num_pipelines: int, first: tuple[int, ...] = ()) -> _Draft:
        """These nodes and the pinned ones in the first pipeline; then who has the least memory takes its nearest."""
        rules = self._rules
        groups = [list(group) for group in self._seeds(num_pipelines, first)]
        left = [node for node in rules.useful if all(node not in group for group in groups)]
        most = len(rules.useful) if rules.use_all else min(len(rules.useful), rules.most_nodes)
        while left and sum(map(len, groups)) < most:
            poorest = min(groups, key=self._room)
            nearest = min(left, key=lambda node: (float(self._near_s[node, poorest].min()), self._layer_s[node], node))
            poorest.append(nearest)
            left.remove(nearest)
        tidy = [tuple(sorted(group)) for group in groups]
        return _Draft(tidy, self._even_streams(tidy))

    def improved(self, draft: _Draft, work: int) -> _Draft:
        """Move nodes and streams while that helps and there is work left to be done."""
        self._work = work
        before: _Worth | None = None
        while self._work > 0 and (before is None or _is_better(self.worth(draft), before)):
            before = self.worth(draft)
            self._share_streams(draft)
            self._move_nodes(draft)
            self._swap_nodes(draft)
        return draft

    def worth(self, draft: _Draft) -> _Worth:
        return _total(self._worth(pipeline) for pipeline in draft.pipelines())

    def planned(self, draft: _Draft) -> FoundFleet | None:
        """With what its pipelines really give."""
        if not self._rules.allows([node for group in draft.groups for node in group]):
            return None
        given = [self._speeds.solved(pipeline) for pipeline in draft.pipelines()]
        return FoundFleet(draft.pipelines(), sum(given), float("inf")) if all(given) else None

    # ------------------------------------------------------------------------------------- starts

    def _seeds(self, num_pipelines: int, first: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The given and the pinned nodes, or the fastest; then each time the node that is farthest from those before.

        A single plan may use so many nodes that too few are left: it gives up those with the slowest layers.
        """
        rules = self._rules
        by_speed = sorted(set(first), key=lambda node: (self._layer_s[node], node))
        most = min(len(rules.useful), rules.most_nodes) - num_pipelines + 1
        kept = [node for node in by_speed if node not in rules.pinned][: max(0, most - len(rules.pinned))]
        taken = sorted({*kept, *rules.pinned}) or [min(rules.useful, key=lambda node: (self._layer_s[node], node))]
        yield tuple(taken)
        for _ in range(num_pipelines - 1):
            left = [node for node in rules.useful if node not in taken]
            if not left:
                return
            taken.append(max(left, key=lambda node: (self._near_s[node, taken].min(), -self._layer_s[node], -node)))
            yield (taken[-1],)

    def _room(self, group: list[int]) -> int:
        return int(self._speeds.question.problem.capacity[group].sum())

    def _even_streams(self, groups: list[tuple[int, ...]]) -> list[int]:
        """In proportion to speed, one at least; ties go to the earlier one."""
        rates = numpy.array([sum(1 / max(float(self._layer_s[node]), 1e-12) for node in group) for group in groups])
        wanted = rates / rates.sum() * self._rules.num_streams
        streams = [max(1, int(share)) for share in wanted]
        while sum(streams) != self._rules.num_streams:
            missing = 1 if sum(streams) < self._rules.num_streams else -1
            able = [i for i, count in enumerate(streams) if count + missing >= 1]
            streams[max(able, key=lambda i: (missing * (wanted[i] - streams[i]), -i))] += missing
        return streams

    # -------------------------------------------------------------------------------------- moves

    def _share_streams(self, draft: _Draft) -> None:
        """From one pipeline to another, half of all at first and one at the end."""
        step = max(1, self._rules.num_streams // 2)
        while step and self._work > 0:
            moved = False
            for a, b in permutations(range(len(draft.groups)), 2):
                if draft.streams[a] > step:
                    changed = {a: (draft.groups[a], draft.streams[a] - step)}
                    moved |= self._try(draft, {**changed, b: (draft.groups[b], draft.streams[b] + step)})
            step = step if moved else step // 2

    def _move_nodes(self, draft: _Draft) -> None:
        """Each node to the pipeline, or out of all of them, where that helps most, one after the other."""
        for node in self._movable():
            home = self._home(draft, node)
            if self._work <= 0 or (home is not None and len(draft.groups[home]) == 1):
                continue
            is_full = sum(map(len, draft.groups)) >= self._rules.most_nodes
            for other in [*range(len(draft.groups)), None]:
                home = self._home(draft, node)
                if other == home or (home is None and is_full) or (other is None and self._rules.use_all):
                    continue
                changed = {}
                if home is not None:
                    rest = tuple(one for one in draft.groups[home] if one != node)
                    changed[home] = (rest, draft.streams[home])
                if other is not None:
                    changed[other] = (tuple(sorted((*draft.groups[other], node))), draft.streams[other])
                if changed and all(group for group, _ in changed.values()):
                    self._try(draft, changed)

    def _swap_nodes(self, draft: _Draft) -> None:
        """Two nodes of different pipelines, or one that is in none for one that is."""
        for one, other in combinations(self._movable(), 2):
            a, b = self._home(draft, one), self._home(draft, other)
            if a == b or self._work <= 0:
                continue
            changed = {}
            for home, leaving, coming in ((a, one, other), (b, other, one)):
                if home is not None:
                    group = (coming, *(node for node in draft.groups[home] if node != leaving))
                    changed[home] = (tuple(sorted(group)), draft.streams[home])
            self._try(draft, changed)

    def _movable(self) -> list[int]:
        return [node for node in self._rules.useful if node not in self._rules.pinned]

    def _home(self, draft: _Draft, node: int) -> int | None:
        return next((i for i, group in enumerate(draft.groups) if node in group), None)

    def _try(self, draft: _Draft, changed: dict[int, tuple[tuple[int, ...], int]]) -> bool:
        """Change these pipelines, if that makes them together better."""
        now = _total(self._worth(Pipeline(draft.groups[i], draft.streams[i])) for i in changed)
        then = _total(self._worth(Pipeline(*pipeline)) for pipeline in changed.values())
        if not _is_better(then, now):
            return False
        for i, (group, streams) in changed.items():
            draft.groups[i], draft.streams[i] = group, streams
        return True

    def _worth(self, pipeline: Pipeline) -> _Worth:
        self._work -= len(pipeline.nodes)
        form = self._speeds.form(pipeline)
        if form not in self._worths:
            missing = self._speeds.missing_layers(pipeline)
            self._worths[form] = (-missing, 0.0) if missing else (0, self._speeds.at_most(pipeline))
        return self._worths[form]


def _total(worths: Iterator[_Worth]) -> _Worth:
    pairs = list(worths)
    return sum(missing for missing, _ in pairs), sum(tokens_per_s for _, tokens_per_s in pairs)


def _is_better(then: _Worth, now: _Worth) -> bool:
    if then[0] != now[0]:
        return then[0] > now[0]
    return then[1] > now[1] * (1 + BETTER)
