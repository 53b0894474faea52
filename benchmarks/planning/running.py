"""One emulated cluster from nothing to its record.

The product starts on it, measures it and makes its plan. From what it measured, the simple policies make theirs; each
placement that differs is then served by the same runtime, with its layers pinned. One server runs at a time: idle ones
would take a slow node's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.arms import ButterflyArm, Server
from benchmarks.lab import Lab, Link, NodeConfig
from benchmarks.measuring import run_load
from benchmarks.planning.clusters import EmulatedCluster
from benchmarks.planning.record import PLANNED, ClusterRecord, Measurement, PlanRecord
from benchmarks.processes import fetch
from benchmarks.running import FAILURES, model_path
from benchmarks.scenarios import LoadShape
from butterfly.models import open_model, with_weights
from butterfly.partitioning.policies import compare
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import ClusterSpec, ClusterStatus, ModelFootprint, Plan, WeightFormat, WorkloadSpec

Tell = Callable[[str], None]
PROMPT_TOKENS = 512
_WEIGHTS: WeightFormat = "int4"
_FRONT = "front"


def loads_of(cluster: EmulatedCluster) -> tuple[LoadShape, LoadShape, LoadShape]:
    """Decode of one stream, a prompt of 512 tokens (as far as the context goes), and all streams at once."""
    prompt = min(PROMPT_TOKENS, cluster.context - 32)
    return (
        LoadShape(name="decode", kind="decode", input_tokens=16, output_tokens=48, concurrency=1, requests=2),
        LoadShape(name="prefill", kind="prefill", input_tokens=prompt, output_tokens=2, concurrency=1, requests=1),
        LoadShape(
            name="streams",
            kind="streams",
            input_tokens=16,
            output_tokens=48,
            concurrency=cluster.num_streams,
            requests=cluster.num_streams,
        ),
    )


def mean_context(cluster: EmulatedCluster) -> int:
    """Tokens of a stream of the decode load in the middle of its answer: what is planned for is what is measured."""
    decode, _, _ = loads_of(cluster)
    return _middle(decode)


def _middle(load: LoadShape) -> int:
    return load.input_tokens + load.output_tokens // 2


def run_cluster(cluster: EmulatedCluster, rounds: int, tell: Tell) -> ClusterRecord:
    """Measure; what goes wrong is in the record."""
    try:
        return _run(cluster, rounds, tell)
    except FAILURES as error:
        tell(f"failed: {error}")
        return ClusterRecord(cluster=cluster, failure=str(error) or type(error).__name__)


def _run(cluster: EmulatedCluster, rounds: int, tell: Tell) -> ClusterRecord:
    model = model_path(cluster.model)
    footprint = with_weights(open_model(str(model)), "bfloat16", _WEIGHTS).footprint
    footprint = msgspec.structs.replace(footprint, max_context=min(cluster.context, footprint.max_context))
    with Lab(_configs(cluster), cluster.between_sites_s) as lab:
        with _serving(cluster, lab, model, None) as (server, spec, planned):
            plans, refused = _plans(cluster, footprint, spec, planned)
            tell(f"{len(plans)} placements: " + "; ".join(f"{', '.join(p.policies)} {_words(p.plan)}" for p in plans))
            measured = [[_measure(server, cluster, footprint, spec, planned, 1)], *([] for _ in plans[1:])]
            tell(_line(plans[0], measured[0][0]))
        for turn in range(rounds):
            for number, plan in enumerate(plans):
                if turn == number == 0:
                    continue
                with _serving(cluster, lab, model, plan.plan) as (server, own, served):
                    measured[number].append(_measure(server, cluster, footprint, own, served, seed=turn + 1))
                tell(_line(plan, measured[number][-1]))
    done = [msgspec.structs.replace(plan, measurements=tuple(runs)) for plan, runs in zip(plans, measured, strict=True)]
    return ClusterRecord(cluster=cluster, measured=spec, plans=tuple(done), refused=refused)


def _configs(cluster: EmulatedCluster) -> list[NodeConfig]:
    """The nodes with workers, and one in front of them: coordinator, API and client would take a node's only core."""
    lan = Link(1e9, 0.000125)
    return [
        NodeConfig(_FRONT, up=lan, down=lan, site=cluster.nodes[0].site),
        *_worker_configs(cluster),
    ]


def _worker_configs(cluster: EmulatedCluster) -> list[NodeConfig]:
    return [
        NodeConfig(
            f"n{number}",
            up=Link(node.rate_bits_per_s, node.delay_s),
            down=Link(node.rate_bits_per_s, node.delay_s),
            cores=(node.core,),
            cpu_share=node.cpu_share,  # also a whole core: a worker would be in the group of who starts it
            site=node.site,
        )
        for number, node in enumerate(cluster.nodes)
    ]


@contextmanager
def _serving(
    cluster: EmulatedCluster, lab: Lab, model: Path, pinned: Plan | None
) -> Iterator[tuple[Server, ClusterSpec, Plan]]:
    """The product on all nodes, as it measured them now, and its plan: of its own, or with the layers of another's."""
    options = ["--memory", ",".join(node.memory for node in cluster.nodes), "--weights", _WEIGHTS]
    options += ["--objective", cluster.objective, "--best-workers", "--mean-context", str(mean_context(cluster))]
    for stage in pinned.stages if pinned else ():
        options += ["--layers", f"{stage.worker}={stage.start}:{stage.end}"]
    nodes = [lab.nodes[f"n{index}"] for index in range(len(cluster.nodes))]
    with TemporaryDirectory(prefix="butterfly-planning-") as cache:  # empty: the machine's speed is not what it was
        arm = ButterflyArm(options=tuple(options), front=lab.nodes[_FRONT], cache=Path(cache))
        with arm.start(model, nodes, 1, cluster.num_streams, cluster.context) as server:
            status = msgspec.json.decode(fetch(f"{server.url}/status", server.node), type=ClusterStatus)
            assert status.cluster is not None
            assert status.plan is not None
            yield server, status.cluster, status.plan


def _plans(
    cluster: EmulatedCluster, footprint: ModelFootprint, spec: ClusterSpec, planned: Plan
) -> tuple[list[PlanRecord], tuple[str, ...]]:
    """The product's plan first, then each other placement that a policy chose; and who found none."""
    workload = WorkloadSpec(
        concurrency=cluster.num_streams,
        context=cluster.context,
        mean_context=mean_context(cluster),
        objective=cluster.objective,
    )
    chosen: dict[tuple[tuple[str, int, int], ...], tuple[Plan, list[str]]] = {_key(planned): (planned, [PLANNED])}
    refused = []
    for result in compare(footprint, spec, workload):
        if result.plan is None:
            refused.append(f"{result.name}: {result.reason}")
        else:
            chosen.setdefault(_key(result.plan), (result.plan, []))[1].append(result.name)
    records = [
        PlanRecord(policies=tuple(name for name in names if name != "ours") or tuple(names), plan=plan)
        for plan, names in chosen.values()
    ]
    return records, tuple(refused)


def _placement(plan: Plan, problem: Problem) -> Placement:
    nodes = tuple(problem.names.index(stage.worker) for stage in plan.stages)
    return Placement(nodes, tuple(stage.end for stage in plan.stages))


def _key(plan: Plan) -> tuple[tuple[str, int, int], ...]:
    return tuple((stage.worker, stage.start, stage.end) for stage in plan.stages)


def _measure(
    server: Server, cluster: EmulatedCluster, footprint: ModelFootprint, spec: ClusterSpec, plan: Plan, seed: int
) -> Measurement:
    """Predictions are for the contexts of the loads: a step's is on average that in the middle of its answer."""
    loads = loads_of(cluster)

    def at(load: LoadShape) -> Plan:
        workload = WorkloadSpec(
            concurrency=load.concurrency,
            context=cluster.context,
            mean_context=_middle(load),
            prompt_tokens=load.input_tokens,
        )
        problem = Problem.of(footprint, spec, workload)
        return predict(problem, _placement(plan, problem), workload)

    decode, prefill, streams = (run_load(server, load, seed) for load in loads)
    assert decode.tpot_s is not None
    assert prefill.ttft_s is not None
    return Measurement(
        tpot_s=decode.tpot_s.p50,
        ttft_s=prefill.ttft_s.p50,
        tokens_per_s=streams.output_tokens_per_s,
        predicted_tpot_s=at(loads[0]).predicted_tpot_s,
        predicted_ttft_s=at(loads[1]).predicted_ttft_s,
        predicted_tokens_per_s=at(loads[2]).predicted_tokens_per_s,
    )


def _words(plan: Plan) -> str:
    return " ".join(f"{stage.worker}={stage.start}:{stage.end}" for stage in plan.stages)


def _line(plan: PlanRecord, one: Measurement) -> str:
    names = ", ".join(plan.policies)
    return (
        f"{names:>30}: TPOT {one.tpot_s * 1e3:.1f} ms ({one.predicted_tpot_s * 1e3:.1f} predicted), "
        f"TTFT {one.ttft_s:.2f} s ({one.predicted_ttft_s:.2f}), "
        f"{one.tokens_per_s:.1f} tok/s ({one.predicted_tokens_per_s:.1f})"
    )
