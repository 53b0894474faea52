"""From a placement to a plan: memory of each stage, predicted TPOT, TTFT and throughput, the bound, and what binds.

Predictions are of decode at the mean context of the workload, which is where a sequence is on average. The bound is
what reading the weights and the KV cache once and carrying the bytes take at least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from butterfly.partitioning import costs
from butterfly.partitioning.objective import batch_tokens, cost
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import NodeSpec, Plan, StagePlan, WorkloadSpec

_CHUNKS = (16, 32, 64, 128, 256, 512)  # tokens: what a scheduler may cut a prompt into
_MAX_STEP_S = 1.0  # a chunk takes no longer than this on any stage, unless it is the smallest


def predict(problem: Problem, placement: Placement, workload: WorkloadSpec, lower_bound_s: float = 0.0) -> Plan:
    """The plan of a placement, good or bad. `lower_bound_s`: no placement costs less; 0: nothing is known."""
    stages = _stages(problem, placement, workload)
    hops = hops_s(problem, stages, num_tokens=1)
    score = problem.evaluate(placement)
    prompt_tokens = max(1, min(workload.prompt_tokens, workload.context, problem.model.max_context))
    return Plan(
        stages=tuple(
            msgspec.structs.replace(stage, predicted_hop_s=hop, codec=codec)
            for stage, hop, codec in zip(stages, hops, _codecs(problem, stages), strict=False)
        ),
        predicted_tpot_s=sum(stage.predicted_compute_s for stage in stages) + sum(hops),
        bound_tpot_s=_bound_s(problem, stages),
        binding=_binding(problem, placement, stages, hops),
        kv_capacity_tokens=workload.total_kv_tokens(min(workload.context, problem.model.max_context)),
        objective=problem.objective,
        cost_s=score.cost_s,
        gap=max(0.0, 1 - lower_bound_s / score.cost_s) if score.cost_s else 0.0,
        predicted_ttft_s=ttft_s(problem, stages, prompt_tokens),
        prompt_tokens=prompt_tokens,
        predicted_tokens_per_s=tokens_per_s(problem, stages),
        concurrency=problem.concurrency,
        mean_context=problem.context,
        return_hop_s=hops[-1],
        left_out=tuple(name for number, name in enumerate(problem.names) if number not in placement.nodes),
    )


def hops_s(problem: Problem, stages: Sequence[StagePlan], num_tokens: int) -> list[float]:
    """Seconds of each hop of a decode step: to the first stage, from stage to stage, and back."""
    names = [costs.COORDINATOR, *(stage.worker for stage in stages), costs.COORDINATOR]
    links = [problem.link(a, b) for a, b in pairwise(names)]
    ids, hidden = costs.TOKEN_BYTES * num_tokens, problem.model.hidden_bytes_per_token * num_tokens
    between = [costs.hidden_hop_s(link, hidden) for link in links[1:-1]]
    return [costs.hop_s(links[0], ids), *between, costs.hop_s(links[-1], ids)]


def decode_stage_s(problem: Problem, stage: StagePlan, num_sequences: int, context: int | None = None) -> float:
    """Seconds of a stage for one new token of each of so many sequences, at the planned context or another one."""
    model, node = problem.model, _node(problem, stage)
    at = problem.context if context is None else context
    layers = _layers_s(problem, stage, num_sequences, at, is_prompt=False)
    return costs.step_s(node) + layers + (costs.head_s(node, model, num_sequences) if stage.head else 0.0)


def tokens_per_s(problem: Problem, stages: Sequence[StagePlan]) -> float:
    """What all streams together decode, with as many slots as stages."""
    num_tokens = batch_tokens("throughput", problem.concurrency, len(stages))
    compute = [decode_stage_s(problem, stage, num_tokens) for stage in stages]
    names = [stage.worker for stage in stages]
    hidden = problem.model.hidden_bytes_per_token * num_tokens
    carried = [costs.carry(problem.link(a, b), hidden).occupied_s for a, b in pairwise(names)]
    trip_s = sum(compute) + sum(hops_s(problem, stages, num_tokens))
    seconds = cost("throughput", trip_s, max(*compute, *carried, 0.0), len(stages), problem.concurrency)
    return 1 / float(seconds) if seconds else 0.0


def ttft_s(problem: Problem, stages: Sequence[StagePlan], prompt_tokens: int) -> float:
    """Seconds to the first token of a prompt on an idle cluster, cut into the chunks that end earliest."""
    sizes = [size for size in _CHUNKS if size < prompt_tokens]
    sizes.append(min(prompt_tokens, _CHUNKS[-1]))
    short = [
        size
        for size in sizes
        if size == min(sizes)
        or max(prefill_stage_s(problem, stage, size, prompt_tokens // 2) for stage in stages) <= _MAX_STEP_S
    ]
    return min(_flow_shop_s(problem, stages, prompt_tokens, size) for size in short)


def _flow_shop_s(problem: Problem, stages: Sequence[StagePlan], prompt_tokens: int, chunk: int) -> float:
    """Chunks pass stages and links in order, each of which takes one at a time; latencies overlap."""
    hidden = problem.model.hidden_bytes_per_token
    links = [problem.link(a.worker, b.worker) for a, b in pairwise(stages)]
    out = problem.link(costs.COORDINATOR, stages[0].worker)
    free_s = [0.0] * len(stages)
    link_free_s = [0.0] * len(links)
    ready_s = 0.0
    for start in range(0, prompt_tokens, chunk):
        size = min(chunk, prompt_tokens - start)
        ready_s = costs.hop_s(out, size * costs.TOKEN_BYTES)
        for i, stage in enumerate(stages):
            if i:
                link, carried = links[i - 1], costs.carry(links[i - 1], size * hidden)
                link_free_s[i - 1] = max(ready_s, link_free_s[i - 1]) + carried.occupied_s
                coding_s = carried.seconds - carried.occupied_s
                ready_s = link_free_s[i - 1] + coding_s + link.latency_s + link.software_s
            free_s[i] = max(ready_s, free_s[i]) + prefill_stage_s(problem, stage, size, start)
            ready_s = free_s[i]
    last = _node(problem, stages[-1])
    back = problem.link(stages[-1].worker, costs.COORDINATOR)
    return ready_s + costs.head_s(last, problem.model, 1) + costs.hop_s(back, costs.TOKEN_BYTES)


def _codecs(problem: Problem, stages: Sequence[StagePlan]) -> list[str]:
    """What a batch of the objective goes to each stage in."""
    hidden = problem.model.hidden_bytes_per_token * problem.num_tokens(len(stages))
    between = [problem.link(a.worker, b.worker) for a, b in pairwise(stages)]
    return ["", *(costs.carry(link, hidden).codec for link in between)]


def prefill_stage_s(problem: Problem, stage: StagePlan, num_tokens: int, context: int) -> float:
    """Seconds of a stage for so many tokens of one prompt, with `context` tokens before them."""
    layers = _layers_s(problem, stage, num_tokens, context, is_prompt=True)
    return costs.step_s(_node(problem, stage)) + layers


def _layers_s(problem: Problem, stage: StagePlan, num_tokens: int, context: int, *, is_prompt: bool) -> float:
    """All layers of a stage; those that cost the same are looked up once."""
    model, node = problem.model, _node(problem, stage)
    alike = Counter(problem.layer_forms[stage.start : stage.end])
    return sum(
        count * costs.layer_s(node, model, problem.layer_forms.index(form), num_tokens, context, is_prompt=is_prompt)
        for form, count in alike.items()
    )


def _node(problem: Problem, stage: StagePlan) -> NodeSpec:
    return problem.nodes[problem.names.index(stage.worker)]


def _stages(problem: Problem, placement: Placement, workload: WorkloadSpec) -> list[StagePlan]:
    model = problem.model
    kv_tokens = workload.total_kv_tokens(min(workload.context, model.max_context))
    border_bytes = model.border_bytes_per_token * kv_tokens
    stages = []
    for i, (node, start, end) in enumerate(placement.ranges()):
        embedding, head = i == 0, i == len(placement.nodes) - 1
        stage = StagePlan(
            worker=problem.names[node],
            start=start,
            end=end,
            embedding=embedding,
            head=head,
            weight_bytes=costs.weight_bytes(model, start, end, embedding=embedding, head=head),
            kv_bytes=costs.kv_bytes_per_token(model, start, end) * kv_tokens + border_bytes,
            predicted_compute_s=0.0,
            activation_bytes=problem.stage_bytes - border_bytes,
        )
        stages.append(msgspec.structs.replace(stage, predicted_compute_s=decode_stage_s(problem, stage, 1)))
    return stages


def _bound_s(problem: Problem, stages: Sequence[StagePlan]) -> float:
    """What was measured may be faster than memory, from a cache: then it is the bound."""
    compute = [
        min(
            costs.memory_bound_s(_node(problem, stage), problem.model, stage, problem.context),
            stage.predicted_compute_s,
        )
        for stage in stages
    ]
    return sum(compute) + sum(hops_s(problem, stages, 1)) - _software_s(problem, stages)


def _software_s(problem: Problem, stages: Sequence[StagePlan]) -> float:
    names = [costs.COORDINATOR, *(stage.worker for stage in stages), costs.COORDINATOR]
    return sum(problem.link(a, b).software_s for a, b in pairwise(names))


def _binding(problem: Problem, placement: Placement, stages: Sequence[StagePlan], hops: Sequence[float]) -> str:
    """The memory of the fastest node that would take another stage's layer, or else what takes longest."""
    full = _full_faster_node(problem, placement)
    if full is not None:
        return f"memory of node {problem.names[full]}"
    names = [costs.COORDINATOR, *(stage.worker for stage in stages), costs.COORDINATOR]
    shares = [(stage.predicted_compute_s, f"compute of node {stage.worker}") for stage in stages]
    shares += [(hop, f"link {a}-{b}") for hop, (a, b) in zip(hops, pairwise(names), strict=True)]
    return max(shares, key=lambda share: share[0])[1]


def _full_faster_node(problem: Problem, placement: Placement) -> int | None:
    layer_s = problem.costs(len(placement.nodes)).layer_s.mean(axis=1)
    slowest = max(float(layer_s[node]) for node in placement.nodes)
    last = len(placement.nodes) - 1
    smallest_layer = int(problem.layer_bytes.min())
    full = [
        node
        for i, (node, start, end) in enumerate(placement.ranges())
        if problem.needed_bytes(start, end, is_first=i == 0, is_last=i == last) + smallest_layer
        > problem.capacity[node]
        and float(layer_s[node]) < slowest
    ]
    return min(full, key=lambda node: (float(layer_s[node]), node), default=None)
