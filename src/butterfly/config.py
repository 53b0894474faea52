"""The options of a run, resolved once by the command line and frozen."""

from __future__ import annotations

from typing import Literal

from butterfly.specs import ComputeDType, Objective, PlanConstraints, Spec, WeightFormat

PrefixReuseChoice = Literal["auto", "all", "prompt", "off"]  # specs.PrefixReuse, or what the weights allow


class ClusterConfig(Spec, frozen=True):
    """Which model runs on how many workers, started by whom, and what they may use."""

    model: str  # path, alias, hub id or random:...
    num_workers: int = 1  # with Ray, 0: one for each GPU of a node, or one for a node without, later nodes included
    ray_address: str = ""  # HOST:PORT of the Ray cluster that runs the workers, or auto; empty: they run here
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    dtype: ComputeDType = "bfloat16"
    weights: WeightFormat | Literal["auto"] = "auto"  # auto: mixed where this CPU is fast at int8 and they fit
    num_threads: int = 0  # per worker; 0: the cores shared evenly; with Ray, what it gives to a worker
    memory_bytes: tuple[int, ...] = ()  # of each worker in order, or one for all; none: what is free, shared evenly
    context: int = 0  # tokens of one request; 0: the model's, at most DEFAULT_CONTEXT
    mean_context: int = 0  # tokens that a request has on average, to plan for; 0: half of `context`, at most 512
    max_num_sequences: int = 8  # requests in a batch
    kv_tokens: int = 0  # tokens of KV cache in all; 0: context x max_num_sequences
    prefix_reuse: PrefixReuseChoice = "auto"  # auto: all that changes no bit of an answer
    max_num_batched_tokens: int = 512  # tokens of one step at most
    target_ttft_s: float = 60.0  # requests that would wait longer than this for their first token are refused
    encrypt: bool = True
    listen_host: str = "127.0.0.1"  # where the coordinator hears its workers
    listen_port: int = 0  # where others knock who want to join, and the port after it for their messages; 0: nobody may
    discoverable: bool = False  # make the port known on the local network (mDNS)
    worker_prefixes: tuple[tuple[str, ...], ...] = ()  # words before the command of each worker, such as ssh and a host
    objective: Objective = "balanced"
    constraints: PlanConstraints = PlanConstraints(use_all=True)  # workers that were asked for by number hold layers
    measure: bool = True  # profile workers and links before the plan is made; False: plan from rates alone
    num_slots: int = 0  # steps in flight; 0: one per stage and one spare; 1: the plain loop
    step_timeout_s: float = 300.0  # of one step through all stages, waiting behind others included
    heartbeat_timeout_s: float = 2.5  # of a worker's silence, after which it is lost

    @property
    def is_open(self) -> bool:
        """Whether workers of other machines may knock and join."""
        return self.listen_port > 0

    @property
    def fills_places(self) -> bool:
        """Whether every node of a Ray cluster gets a worker, those that come later included."""
        return bool(self.ray_address) and self.num_workers == 0

    @property
    def takes_newcomers(self) -> bool:
        """Whether workers may join that nobody expects at the start."""
        return self.is_open or self.fills_places


DEFAULT_CONTEXT = 4096  # tokens: more is reserved memory that few requests use
