"""One scenario from nothing to its record: the network, its self-check, every arm alive, loads in turn.

Each arm has nodes of its own (pinned to the same cores as the others' nodes), since servers listen on fixed ports;
while one is measured the others idle. All nodes of a scenario have the same links.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.arms import Arm, ButterflyArm, LlamaCppArm
from benchmarks.bounds import Cluster, ModelCosts, hop_wire_s, load_s, model_costs
from benchmarks.bounds import Path as NetworkPath
from benchmarks.hardware import Machine
from benchmarks.lab import Lab, LabError, Link, Node, NodeConfig, PathReport, SwitchLoad, check_path, complaints
from benchmarks.lab.shapes import MTU_BYTES
from benchmarks.measuring import MeasurementError, Subject, in_order, measure, memory_bytes
from benchmarks.models import smollm2_path, synthetic_llama
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.predicting import bound_of
from benchmarks.processes import ServerFailedError
from benchmarks.record import ONE_NODE, OURS, PEER, ArmRecord, Run, ScenarioRecord, rate
from benchmarks.scenarios import GIGABIT, LoadShape, ModelName, Scenario
from butterfly.errors import ButterflyError
from butterfly.models import open_model

Tell = Callable[[str], None]

CHECK_ATTEMPTS = 3
LOAD_TIMEOUT_S = 900.0  # some peers push weights through the slowest link
FAILURES = (MeasurementError, ServerFailedError, LabError, ButterflyError, OSError, subprocess.SubprocessError)


class Arms(NamedTuple):
    """What is measured: ours with these options of `butterfly serve`, and the peer, if any."""

    peer: LlamaCpp | None
    serve_options: tuple[str, ...] = ()


class Entrant(NamedTuple):
    """An arm, the nodes that it gets (none: this machine), and what it is called in the record."""

    name: str
    arm: Arm
    nodes: tuple[str, ...]


@dataclass
class Notebook:
    """What a scenario has brought so far; a failure keeps it."""

    notes: list[str] = field(default_factory=list)
    network: tuple[PathReport, ...] = ()
    load_times_s: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)  # by arm, by load

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def arms(self) -> tuple[ArmRecord, ...]:
        return tuple(
            ArmRecord(
                name=name,
                load_time_s=load_time_s,
                memory_bytes=self.memory.get(name, {}),
                runs={load: tuple(runs) for load, runs in self.runs.get(name, {}).items()},
            )
            for name, load_time_s in self.load_times_s.items()
        )


def run_scenario(scenario: Scenario, machine: Machine, rounds: int, arms: Arms, tell: Tell) -> ScenarioRecord:
    """Measure; what goes wrong is in the record, together with what had been measured by then."""
    book = Notebook()
    record = ScenarioRecord(scenario=scenario, state="failed")
    try:
        model = model_path(scenario.model)
        record = predicted(record, model_costs(open_model(str(model))), machine)
        _measure_all(scenario, model, rounds, arms, book, tell)
        record = msgspec.structs.replace(record, state="done")
    except FAILURES as error:
        record = msgspec.structs.replace(record, reason=str(error) or type(error).__name__)
        tell(f"failed: {record.reason}")
    return msgspec.structs.replace(record, notes=tuple(book.notes), network=book.network, arms=book.arms())


def predicted(record: ScenarioRecord, costs: ModelCosts, machine: Machine) -> ScenarioRecord:
    """The record with its bounds."""
    cluster = cluster_of(record.scenario, machine)
    return msgspec.structs.replace(
        record,
        bounds={load.name: bound_of(costs, cluster, load) for load in record.scenario.loads},
        hop_wire_s=hop_wire_s(costs, cluster),
        load_bound_s=load_s(costs, cluster),
    )


def rebounded(record: ScenarioRecord, machine: Machine) -> ScenarioRecord:
    """The record with the bounds of a machine that was measured again; one that has none stays as it is."""
    if not record.bounds:
        return record
    return predicted(record, model_costs(open_model(str(model_path(record.scenario.model)))), machine)


def cluster_of(scenario: Scenario, machine: Machine) -> Cluster:
    """What the scenario's nodes and links can do at best."""
    speed = machine.speed(scenario.threads)
    nodes = (speed if scenario.cpu_share is None else replace(speed, cpu_share=scenario.cpu_share),) * scenario.nodes
    if scenario.link is None:
        return Cluster(nodes)
    return Cluster(nodes, NetworkPath(scenario.link.one_way_s, scenario.link.rate_bits_per_s / 8, MTU_BYTES))


def model_path(name: ModelName) -> Path:
    """The model's file, made on first use. Raises ModelNotFoundError."""
    return smollm2_path() if name == "smollm2" else synthetic_llama()


def entrants(scenario: Scenario, arms: Arms) -> list[Entrant]:
    """Who is measured, with nodes of their own."""
    ours = ButterflyArm(options=arms.serve_options, load_timeout_s=LOAD_TIMEOUT_S)

    def names(prefix: str, count: int) -> tuple[str, ...]:
        return tuple(f"{prefix}{number}" for number in range(count)) if needs_lab(scenario) else ()

    found = [Entrant(OURS, ours, names("ours", scenario.nodes))]
    if scenario.with_one_node:
        found.append(Entrant(ONE_NODE, ours, names("alone", 1)))
    if arms.peer is not None:
        # On a slow link, 200 KB of logits per token would be what is measured: the layout that is best for it.
        local_head = scenario.link is not None and scenario.link.rate_bits_per_s < GIGABIT.rate_bits_per_s
        peer = LlamaCppArm(arms.peer, local_head=local_head, load_timeout_s=LOAD_TIMEOUT_S)
        found.append(Entrant(PEER, peer, names("peer", scenario.nodes)))
    return found


def needs_lab(scenario: Scenario) -> bool:
    return scenario.link is not None


@contextmanager
def network(scenario: Scenario, everyone: Sequence[Entrant], book: Notebook, tell: Tell) -> Iterator[Lab | None]:
    """The emulated cluster, measured first. Raises LabError when it is not what the scenario asks for."""
    if not needs_lab(scenario):
        yield None
        return
    with Lab([config for entrant in everyone for config in node_configs(scenario, entrant.nodes)]) as lab:
        check_network(lab, [ends for entrant in everyone for ends in ring(entrant.nodes)], book, tell)
        before = lab.switch_load()
        yield lab
        book.note(switch_note(before, lab.switch_load()))


def check_network(lab: Lab, pairs: Sequence[tuple[str, str]], book: Notebook, tell: Tell) -> None:
    """Measure the paths between each pair, both ways; again if something else on this machine got in the way.

    Raises LabError when the last attempt was not good enough either.
    """
    wrong: list[str] = []
    for attempt in range(1, CHECK_ATTEMPTS + 1):
        book.network = tuple(check_path(lab, *ends) for pair in pairs for ends in (pair, pair[::-1]))
        wrong = complaints(book.network)
        if not wrong:
            tell(f"the network is as asked for, on {len(book.network)} paths")
            return
        tell(f"the network is not as asked for (attempt {attempt} of {CHECK_ATTEMPTS}): {'; '.join(wrong)}")
        book.note(f"the network's self-check failed at attempt {attempt}: {len(wrong)} complaints")
    raise LabError(f"the network is not what was asked for: {'; '.join(wrong)}")


def node_configs(scenario: Scenario, names: Sequence[str]) -> list[NodeConfig]:
    """One core each, in turn."""
    link = scenario.link or GIGABIT
    side = Link(link.rate_bits_per_s, link.side_delay_s)
    cores = sorted(os.sched_getaffinity(0))
    return [
        NodeConfig(name, side, side, cores=(cores[number % len(cores)],), cpu_share=scenario.cpu_share)
        for number, name in enumerate(names)
    ]


def ring(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each with the next, and the last with the first: the paths that are checked, in both directions."""
    if len(names) < 2:
        return []
    return list(dict.fromkeys((min(pair), max(pair)) for pair in zip(names, [*names[1:], names[0]], strict=True)))


def switch_note(before: SwitchLoad, after: SwitchLoad) -> str:
    frames, late = after.num_frames - before.num_frames, after.num_late_frames - before.num_late_frames
    share = 100 * late / frames if frames else 0.0
    worst_ms = after.worst_lateness_s * 1e3
    return f"{share:.1f} % of {frames} frames came more than 0.5 ms late, the worst by {worst_ms:.1f} ms"


def _measure_all(scenario: Scenario, model: Path, rounds: int, arms: Arms, book: Notebook, tell: Tell) -> None:
    everyone = entrants(scenario, arms)
    with ExitStack() as stack:
        lab = stack.enter_context(network(scenario, everyone, book, tell))
        subjects = [stack.enter_context(_started(scenario, entrant, model, lab, book, tell)) for entrant in everyone]
        for turn in range(rounds):
            for load in scenario.loads:
                for subject in in_order(subjects, turn):
                    _measure_one(subject, load, turn, rounds, book, tell)
        for subject in subjects:
            book.memory[subject.name] = memory_bytes(subject.server.pids)


@contextmanager
def _started(
    scenario: Scenario, entrant: Entrant, model: Path, lab: Lab | None, book: Notebook, tell: Tell
) -> Iterator[Subject]:
    nodes: list[Node] = [lab.nodes[name] for name in entrant.nodes] if lab else []
    starting = entrant.arm.start(model, nodes, scenario.threads, scenario.max_concurrency, scenario.context)
    with starting as server:
        book.load_times_s[entrant.name] = server.load_time_s
        tell(f"{entrant.name}: ready after {server.load_time_s:.1f} s")
        yield Subject(entrant.name, server, lab, frozenset(entrant.nodes), entrant.name != PEER)


def _measure_one(subject: Subject, load: LoadShape, turn: int, rounds: int, book: Notebook, tell: Tell) -> None:
    run, notes = measure(subject, load, seed=turn + 1)
    book.runs.setdefault(subject.name, {}).setdefault(load.name, []).append(run)
    for note in notes:
        book.note(f"{subject.name}, {load.name}: {note}")
    tell(f"{turn + 1}/{rounds} {load.name:>12} {subject.name:>20}: {rate(load, run):8.1f} tok/s")
