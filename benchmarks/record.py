"""What one benchmark run leaves behind: the JSON object from which tables and plots are made."""

from __future__ import annotations

from statistics import median
from typing import Literal

from msgspec import field

from benchmarks.hardware import Machine
from benchmarks.lab.check import PathReport
from benchmarks.scenarios import TARGETS, LoadShape, Scenario, Target
from butterfly.specs import Spec

OURS, PEER, ONE_NODE = "butterfly", "llama.cpp", "butterfly, one node"

ScenarioState = Literal["done", "failed", "left out"]


class Run(Spec, frozen=True):
    """One measurement of one load on one arm. Times are medians over its requests."""

    ttft_s: float
    tpot_s: float | None  # None: no request had two tokens
    output_tokens_per_s: float  # of all streams, from the first request to the last answer
    requests: int
    input_tokens: int  # of all requests
    output_tokens: int
    link_bytes_per_token: dict[str, float] = field(
        default_factory=dict
    )  # on the wire, by "sender -> receiver"; prompts and outputs
    stage_busy: dict[str, float] = field(default_factory=dict)  # share of the time that a stage computed
    hop_s: float | None = None  # time of a step that no stage computed, per message


class ArmRecord(Spec, frozen=True):
    """One server under all loads of a scenario, each measured once per round."""

    name: str
    load_time_s: float
    memory_bytes: dict[str, int] = field(default_factory=dict)  # resident, by process, after the loads
    runs: dict[str, tuple[Run, ...]] = field(default_factory=dict)  # by load


class Bound(Spec, frozen=True):
    """What no implementation can beat under one load: least times, highest rate."""

    ttft_s: float
    tpot_s: float
    rate: float  # in the unit of the load's figure


class ScenarioRecord(Spec, frozen=True):
    scenario: Scenario
    state: ScenarioState
    reason: str = ""  # why it failed or was left out
    notes: tuple[str, ...] = ()
    network: tuple[PathReport, ...] = ()  # as measured before the arms started
    bounds: dict[str, Bound] = field(default_factory=dict)  # by load
    hop_wire_s: float = 0.0  # of the wire in a one-stream step, per message: not software
    load_bound_s: float = 0.0
    arms: tuple[ArmRecord, ...] = ()

    def arm(self, name: str) -> ArmRecord | None:
        return next((arm for arm in self.arms if arm.name == name), None)


class Record(Spec, frozen=True):
    benchmark: str  # the theme: first part of the file names
    created: str  # ISO date
    machine: Machine
    rounds: int
    quick: bool
    serve_options: tuple[str, ...] = ()  # of our arms
    scenarios: tuple[ScenarioRecord, ...] = ()

    @property
    def file_stem(self) -> str:
        return f"{self.benchmark}_{self.machine.slug}_{self.created[:7].replace('-', '')}"


def rate(load: LoadShape, run: Run) -> float:
    """The load's figure, in tokens per second; see LoadShape."""
    if load.kind == "prefill":
        return load.input_tokens / run.ttft_s
    if load.kind == "decode":
        return 1 / run.tpot_s if run.tpot_s else 0.0
    return run.output_tokens_per_s


class Figure(Spec, frozen=True):
    """The median of several measurements, and their least and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure | None:
        return cls(median=float(median(values)), low=min(values), high=max(values)) if values else None


def figure(record: ScenarioRecord, arm: str, load: LoadShape) -> Figure | None:
    """The load's figure on one arm; None when it was not measured."""
    found = record.arm(arm)
    return Figure.of([rate(load, run) for run in found.runs.get(load.name, ())]) if found else None


def ratio(record: ScenarioRecord, load: LoadShape, arm: str, against: str) -> Figure | None:
    """The ratio of two arms' figures: of their medians, and its spread over the rounds, in which both were measured."""
    ours, theirs = record.arm(arm), record.arm(against)
    if ours is None or theirs is None:
        return None
    pairs = zip(ours.runs.get(load.name, ()), theirs.runs.get(load.name, ()), strict=False)
    by_round = Figure.of([rate(load, a) / rate(load, b) for a, b in pairs if rate(load, b)])
    a, b = figure(record, arm, load), figure(record, against, load)
    if by_round is None or a is None or b is None or not b.median:
        return None
    return Figure(median=a.median / b.median, low=by_round.low, high=by_round.high)


def software_per_hop(record: ScenarioRecord, load: LoadShape) -> Figure | None:
    """Seconds of software per message while one stream decodes: the wire is taken out.

    With more than one step in flight (streams, chunks of a prompt) the measured time would be that of queues.
    """
    found = record.arm(OURS)
    if found is None or load.kind != "decode":
        return None
    runs = found.runs.get(load.name, ())
    return Figure.of([max(0.0, run.hop_s - record.hop_wire_s) for run in runs if run.hop_s is not None])


class Verdict(Spec, frozen=True):
    """What was measured where a target was set."""

    target: Target
    measured: Figure

    @property
    def is_met(self) -> bool:
        return self.target.is_met(self.measured.median)


def verdicts(record: Record) -> tuple[Verdict, ...]:
    """One for each target whose figures are in the record, in the targets' order."""
    by_name = {done.scenario.name: done for done in record.scenarios}
    found = ((target, _measured(by_name[target.scenario], target)) for target in TARGETS if target.scenario in by_name)
    return tuple(Verdict(target=target, measured=measured) for target, measured in found if measured is not None)


def _measured(record: ScenarioRecord, target: Target) -> Figure | None:
    try:
        load = record.scenario.load(target.load)
    except KeyError:
        return None
    if target.against == "peer":
        return ratio(record, load, OURS, PEER)
    if target.against == "one node":
        return ratio(record, load, OURS, ONE_NODE)
    if target.against == "absolute":
        return software_per_hop(record, load)
    return share_of_bound(record, load)


def share_of_bound(record: ScenarioRecord, load: LoadShape, arm: str = OURS) -> Figure | None:
    """How near an arm comes to what nothing can beat: 1 is there."""
    measured, bound = figure(record, arm, load), record.bounds.get(load.name)
    if measured is None or bound is None:
        return None
    return Figure(median=measured.median / bound.rate, low=measured.low / bound.rate, high=measured.high / bound.rate)
