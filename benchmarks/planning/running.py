"""One emulated cluster from nothing to its record.

The product starts on it, measures it and makes its plan. From what it measured, the simple policies make theirs; each
placement that differs is then served by the same runtime, with its layers pinned. One server runs at a time: idle ones
would take a slow node's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

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
        with _serving(cluster, lab, model, None) as server:
            status = msgspec.json.decode(fetch(f"{server.url}/status", server.node), type=ClusterStatus)
            assert status.cluster is not None
            assert status.plan is not None
            plans, refused = _plans(cluster, footprint, status.cluster, status.plan)
            tell(f"{len(plans)} placements: " + "; ".join(f"{', '.join(p.policies)} {_words(p.plan)}" for p in plans))
            measured = [[_measure(server, cluster, 1)], *([] for _ in plans[1:])]
            tell(_line(plans[0], measured[0][0]))
        for turn in range(rounds):
            for number, plan in enumerate(plans):
                if turn == number == 0:
                    continue
                with _serving(cluster, lab, model, plan.plan) as server:
                    measured[number].append(_measure(server, cluster, seed=turn + 1))
                tell(_line(plan, measured[number][-1]))
    done = [msgspec.structs.replace(plan, measurements=tuple(runs)) for plan, runs in zip(plans, measured, strict=True)]
    return ClusterRecord(cluster=cluster, measured=status.cluster, plans=tuple(done), refused=refused)


def _configs(cluster: EmulatedCluster) -> list[NodeConfig]:
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


def _serving(cluster: EmulatedCluster, lab: Lab, model: Path, pinned: Plan | None) -> AbstractContextManager[Server]:
    """The product on all nodes: with a plan of its own, or with the layers of another's."""
    options = ["--memory", ",".join(node.memory for node in cluster.nodes), "--weights", _WEIGHTS]
    options += ["--objective", cluster.objective, "--best-workers"]
    for stage in pinned.stages if pinned else ():
        options += ["--layers", f"{stage.worker}={stage.start}:{stage.end}"]
    options += ["--no-measure"] if pinned else []
    nodes = [lab.nodes[f"n{index}"] for index in range(len(cluster.nodes))]
    return ButterflyArm(options=tuple(options)).start(model, nodes, 1, cluster.num_streams, cluster.context)


def _plans(
    cluster: EmulatedCluster, footprint: ModelFootprint, spec: ClusterSpec, planned: Plan
) -> tuple[list[PlanRecord], tuple[str, ...]]:
    """The product's plan first, then each other placement that a policy chose; and who found none."""
    workload = WorkloadSpec(concurrency=cluster.num_streams, context=cluster.context, objective=cluster.objective)
    chosen: dict[tuple[tuple[str, int, int], ...], tuple[Plan, list[str]]] = {_key(planned): (planned, [PLANNED])}
    refused = []
    for result in compare(footprint, spec, workload):
        if result.plan is None:
            refused.append(f"{result.name}: {result.reason}")
        else:
            chosen.setdefault(_key(result.plan), (result.plan, []))[1].append(result.name)
    records = [
        _predicted(cluster, footprint, spec, plan, [name for name in names if name != "ours"] or names)
        for plan, names in chosen.values()
    ]
    return records, tuple(refused)


def _predicted(
    cluster: EmulatedCluster, footprint: ModelFootprint, spec: ClusterSpec, plan: Plan, names: Sequence[str]
) -> PlanRecord:
    """Predictions for the contexts of the loads: a step's context is on average that in the middle of its answer."""
    decode, prefill, streams = loads_of(cluster)

    def at(load: LoadShape, concurrency: int) -> Plan:
        middle = load.input_tokens + load.output_tokens // 2
        workload = WorkloadSpec(
            concurrency=concurrency, context=2 * middle, prompt_tokens=load.input_tokens, objective="latency"
        )
        problem = Problem.of(footprint, spec, workload)
        return predict(problem, _placement(plan, problem), workload)

    return PlanRecord(
        policies=tuple(names),
        plan=plan,
        predicted_tpot_s=at(decode, 1).predicted_tpot_s,
        predicted_ttft_s=at(prefill, 1).predicted_ttft_s,
        predicted_tokens_per_s=at(streams, cluster.num_streams).predicted_tokens_per_s,
    )


def _placement(plan: Plan, problem: Problem) -> Placement:
    nodes = tuple(problem.names.index(stage.worker) for stage in plan.stages)
    return Placement(nodes, tuple(stage.end for stage in plan.stages))


def _key(plan: Plan) -> tuple[tuple[str, int, int], ...]:
    return tuple((stage.worker, stage.start, stage.end) for stage in plan.stages)


def _measure(server: Server, cluster: EmulatedCluster, seed: int) -> Measurement:
    decode, prefill, streams = (run_load(server, load, seed) for load in loads_of(cluster))
    assert decode.tpot_s is not None
    assert prefill.ttft_s is not None
    return Measurement(tpot_s=decode.tpot_s.p50, ttft_s=prefill.ttft_s.p50, tokens_per_s=streams.output_tokens_per_s)


def _words(plan: Plan) -> str:
    return " ".join(f"{stage.worker}={stage.start}:{stage.end}" for stage in plan.stages)


def _line(plan: PlanRecord, one: Measurement) -> str:
    names = ", ".join(plan.policies)
    return (
        f"{names:>30}: TPOT {one.tpot_s * 1e3:.1f} ms ({plan.predicted_tpot_s * 1e3:.1f} predicted), "
        f"TTFT {one.ttft_s:.2f} s ({plan.predicted_ttft_s:.2f}), "
        f"{one.tokens_per_s:.1f} tok/s ({plan.predicted_tokens_per_s:.1f})"
    )
