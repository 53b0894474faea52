"""A worker finds out what steps of a model take here, with the model's own weights and the kernels that serve.

Every point of a grid is run in turn, round after round, so that a disturbance meets all of them alike; the first round
only warms up, and drops what would take too long here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from butterfly.messages import Profile
from butterfly.specs import ComputeDType, ComputeProfile, SamplingSpec, SequenceStep, StepPlan
from butterfly.worker.profile_points import Grid, Point, make_grid, max_head_bytes
from butterfly.worker.profile_times import KindProfile, ReadClocks, Reading, Times, kind_profile, read_clocks
from butterfly.worker.stage import Progress, Stage

Report = Callable[[float], None]
"""Hears how much is done, from 0 to 1, many times a second; what it raises ends the work."""

_LOADED, _WARM = 0.3, 0.5  # shares of the whole, for `Report`
_FEWEST_COLUMNS = 2  # the slope beyond the last point needs two
_GREEDY = SamplingSpec(temperature=0.0)
_PROMPT_ID = 1 << 20  # beyond those of sequences that decode


class Budget(NamedTuple):
    """How long it may take, beside loading."""

    target_s: float = 3.0
    warm_up_s: float = 2.0  # of a slow node; the rounds after it take as long each
    min_rounds: int = 3  # of which two may be disturbed
    max_rounds: int = 7
    most_s: float = 4.0  # of all rounds, but for the first

    def shared_by(self, num_kinds: int) -> Budget:
        return self._replace(
            target_s=self.target_s / num_kinds, warm_up_s=self.warm_up_s / num_kinds, most_s=self.most_s / num_kinds
        )


class Profiler(Protocol):
    def profile(self, request: Profile, report: Report) -> ComputeProfile:
        """Measure. Exceptions of `report` pass through. Raises ButterflyError, or MemoryError."""


class SampleStage(Stage, Protocol):
    def pretend(self, sequence_id: int, num_tokens: int) -> None:
        """Let a sequence have just so many cached tokens, without computing them."""


class Sample(Protocol):
    """One layer, loaded, and stages of as many copies of it as are asked for."""

    @property
    def layer_bytes(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one layer."""

    @property
    def head_factor(self) -> float:
        """How much larger the model's head is than that of the stages."""

    def stage(self, num_layers: int, *, head: bool) -> SampleStage:
        """A stage without embedding. With the head only if the sample was loaded with one."""


class SampleFactory(Protocol):
    def load(self, request: Profile, layer: int, max_head_bytes: int, progress: Progress) -> Sample:
        """Load one layer, and a head of about `max_head_bytes` at most; 0: none. Otherwise as `StageFactory.load`."""

    def give_back_memory(self) -> None:
        """Return to the system what samples that nobody holds any more have taken."""


class NodeProfiler:
    """Measures on this node. `is_throttled`: this process may not use all of its cores all the time."""

    def __init__(
        self,
        samples: SampleFactory,
        memory_bytes: int,
        *,
        is_throttled: bool = False,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        clocks: ReadClocks = read_clocks,
    ) -> None:
        self._samples, self._memory_bytes, self._is_throttled = samples, memory_bytes, is_throttled
        self._budget, self._clocks = budget, clocks

    def profile(self, request: Profile, report: Report) -> ComputeProfile:
        """Measure each kind of layer, and the head with the first."""
        num_kinds = len(request.layers)
        try:
            kinds = [
                self._measure(request, layer, index == 0, _part_of(report, index, num_kinds))
                for index, layer in enumerate(request.layers)
            ]
        finally:
            self._samples.give_back_memory()
        first = kinds[0]
        return ComputeProfile(layers=tuple(kind.layer for kind in kinds), head=first.head, step_s=first.step_s)

    def _measure(self, request: Profile, layer: int, with_head: bool, report: Report) -> KindProfile:
        """One kind of layer. What it loads is gone when it returns."""
        head_bytes = max_head_bytes(self._memory_bytes) if with_head else 0
        sample = self._samples.load(request, layer, head_bytes, lambda done, total: report(0.0))
        grid = make_grid(
            request.model, sample.layer_bytes, sample.kv_bytes_per_token, self._memory_bytes, with_head=with_head
        )
        bench = _Bench(sample, request, self._clocks)
        budget = self._budget.shared_by(len(request.layers))
        grid = self._warm_up(grid, bench, budget, report)
        times = self._time(grid, bench, budget, report)
        report(1.0)
        return kind_profile(grid, times, sample.head_factor)

    def _warm_up(self, grid: Grid, bench: _Bench, budget: Budget, report: Report) -> Grid:
        """Run every point once; return the grid without the largest steps, where these take too long."""

        def run(column: Sequence[Point]) -> float:
            total_s = 0.0
            for point in column:
                report(_LOADED)
                total_s += bench.run(point).wall_s
            return total_s

        decode = {count: grid.decode_column(count) for count in grid.decode_counts}
        prefill = {count: grid.prefill_column(count) for count in grid.prefill_counts}
        return replace(
            grid,
            decode_counts=_affordable(decode, run, budget.warm_up_s / 2),
            prefill_counts=_affordable(prefill, run, budget.warm_up_s / 2),
        )

    def _time(self, grid: Grid, bench: _Bench, budget: Budget, report: Report) -> Times:
        times, turns = Times(self._is_throttled), grid.round()
        started_s = self._clocks().wall_s
        for number in range(budget.max_rounds):
            for point, is_timed in turns:
                report(_WARM + (1 - _WARM) * number / budget.max_rounds)
                run = bench.run(point)
                if is_timed:
                    times.add(point, run)
            spent_s = self._clocks().wall_s - started_s
            round_s = spent_s / (number + 1)
            limit_s = budget.target_s if number + 1 >= budget.min_rounds else budget.most_s
            if spent_s + round_s > limit_s:
                break
        return times


def _part_of(report: Report, index: int, num_parts: int) -> Report:
    return lambda share: report((index + share) / num_parts)


def _affordable(
    columns: Mapping[int, Sequence[Point]], run: Callable[[Sequence[Point]], float], allowed_s: float
) -> Sequence[int]:
    """Run columns until the next would take too long, on the line of the last two; return the counts of those run."""
    kept: list[int] = []
    seconds: list[float] = []
    for count, column in columns.items():
        if len(kept) >= _FEWEST_COLUMNS:
            slope = max(0.0, seconds[-1] - seconds[-2]) / (kept[-1] - kept[-2])
            if sum(seconds) + seconds[-1] + slope * (count - kept[-1]) > allowed_s:
                break
        seconds.append(run(column))
        kept.append(count)
    return kept


class _Bench:
    """Stages of a sample, and steps for them that look as in serving."""

    def __init__(self, sample: Sample, request: Profile, clocks: ReadClocks) -> None:
        self._sample, self._clocks = sample, clocks
        self._width, self._dtype = request.model.hidden_size, request.dtype
        self._stages: dict[tuple[int, bool], SampleStage] = {}

    def run(self, point: Point) -> Reading:
        """Run the step of a point and return how long that took."""
        stage = self._stage(point.num_layers, point.head)
        plan = _plan(point)
        hidden = memoryview(_hidden_state(point.num_tokens, self._width, self._dtype))
        for sequence in plan.sequences:
            stage.pretend(sequence.sequence_id, sequence.start)
        before = self._clocks()
        stage.run(plan, hidden)
        after = self._clocks()
        return Reading(after.wall_s - before.wall_s, after.cpu_s - before.cpu_s)

    def _stage(self, num_layers: int, head: bool) -> SampleStage:
        if (num_layers, head) not in self._stages:
            self._stages[num_layers, head] = self._sample.stage(num_layers, head=head)
        return self._stages[num_layers, head]


def _plan(point: Point) -> StepPlan:
    def part(sequence_id: int, num_tokens: int, prompt_length: int) -> SequenceStep:
        return SequenceStep(
            sequence_id=sequence_id,
            start=point.context,
            num_tokens=num_tokens,
            prompt_length=prompt_length,
            sampling=_GREEDY if point.head else None,
        )

    if point.role == "prefill":
        sequences = [part(_PROMPT_ID, point.num_tokens, point.context + point.num_tokens)]
    else:
        sequences = [part(sequence_id, 1, point.context) for sequence_id in range(point.num_tokens)]
    return StepPlan(step_id=0, slot=0, sequences=tuple(sequences))


def _hidden_state(num_tokens: int, width: int, dtype: ComputeDType) -> bytearray:
    """Values around one, as bytes of [num_tokens, width]."""
    values = np.random.default_rng(0).standard_normal((num_tokens, width), dtype=np.float32)
    if dtype == "bfloat16":
        return bytearray((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return bytearray(values.astype(dtype).tobytes())
