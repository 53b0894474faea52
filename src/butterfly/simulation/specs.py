"""What goes into a simulation and what comes out. Times are virtual seconds since the cluster was ready."""

from __future__ import annotations

from typing import Literal

from butterfly.cluster import Deadlines, Recovery
from butterfly.partitioning import costs
from butterfly.specs import ClusterPhase, FinishReason, Plan, PlanConstraints, PrefixReuse, Spec


class SimulatedRequest(Spec, frozen=True):
    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int  # and it generates that many: no stop token is ever sampled
    abort_s: float | None = None  # when its client goes away
    conversation: str = ""  # its next request begins with all that was said before; empty: stands alone
    num_shared_tokens: int = 0  # at the start of the prompt: the same for everybody, like a system prompt


class FaultSpec(Spec, frozen=True):
    """A worker that dies at `at_s`: its launcher sees the process end, or nobody sees anything."""

    worker: str
    at_s: float
    kind: Literal["exit", "silence"] = "exit"


class SimulationConfig(Spec, frozen=True):
    constraints: PlanConstraints = PlanConstraints()
    num_slots: int | None = None  # None: as many as stages, and one spare
    max_num_batched_tokens: int = 512
    max_num_sequences: int = 256
    max_waiting_tokens: int = 1_000_000
    target_ttft_s: float = 60.0
    block_size: int = 16
    prefix_reuse: PrefixReuse = "all"
    rows_per_weight_pass: int = costs.ROWS_PER_WEIGHT_PASS  # tokens that cost as one: where only a bandwidth is known
    faults: tuple[FaultSpec, ...] = ()
    load_bytes_per_s: float = 1e9  # at which a worker loads weights that it does not hold yet
    restart_s: float | None = None  # from its restart until a worker that ended joins again; None: it stays away
    deadlines: Deadlines = Deadlines()
    beat_interval_s: float = 1.0
    tick_interval_s: float = 0.25
    time_limit_s: float = 86_400.0  # a story that lasts longer has lost a request: an error


class RequestReport(Spec, frozen=True):
    request_id: str
    arrived_s: float
    ended_s: float
    num_output_tokens: int
    finish_reason: FinishReason
    ttft_s: float | None  # None: no token came
    tpot_s: float | None  # mean seconds per token after the first; None: fewer than two came
    token_times_s: tuple[float, ...] = ()  # when each of them came
    num_cached_tokens: int = 0  # of the prompt: found in the KV cache instead of computed
    error: str = ""  # with finish reason `error`; a refusal is an error that ends as it arrives


class StageReport(Spec, frozen=True):
    worker: str
    busy_s: float
    busy_share: float  # of the makespan


class SimulationReport(Spec, frozen=True):
    plan: Plan  # the last one
    requests: tuple[RequestReport, ...]  # in the order of the arrivals given
    stages: tuple[StageReport, ...]  # one for each worker that had a stage at any time
    makespan_s: float  # until the last request ended
    phase: ClusterPhase
    detail: str
    recovery: Recovery | None = None  # the last move to another plan

    @property
    def num_output_tokens(self) -> int:
        return sum(request.num_output_tokens for request in self.requests)

    @property
    def throughput_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.makespan_s if self.makespan_s else 0.0
