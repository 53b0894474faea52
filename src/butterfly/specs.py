"""The nouns that cross borders: models, clusters, plans, requests. Plain frozen data, no behaviour
beyond arithmetic on their own fields.

Times are seconds (`_s`), sizes are bytes (`_bytes`), ranges are half-open `[start, end)`.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all border data: immutable, compared by value, encodable by msgspec."""


# ---------------------------------------------------------------------------------------- models

Storage = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"
]  # how a tensor is stored in its file (the GGUF names)

Activation = Literal["silu", "gelu_tanh"]
ComputeDType = Literal["bfloat16", "float32", "float16"]
WeightFormat = Literal["int4", "int8", "mixed"]
"""Of quantised matrices on CPUs in bfloat16; mixed: int8 for tokens of prompts, and int4 for generated ones."""


class RopeSpec(Spec, frozen=True):
    """Rotary position embedding: angle of pair i at position p is p * theta^(-2i/dim) / divisor_i."""

    theta: float
    dim: int  # rotated dimensions of each head
    interleaved: bool = False  # pairs are (2i, 2i+1); else (i, i + dim/2)
    freq_divisors: tuple[float, ...] = ()  # one per pair (llama3 or linear scaling); empty: ones


class LayerSpec(Spec, frozen=True):
    """What differs between the decoder layers of one model."""

    rope: int = 0  # index into ModelSpec.ropes
    window: int | None = None  # a token sees itself and the window-1 tokens before it; None: all


class ModelSpec(Spec, frozen=True):
    """A decoder as data: everything the engine needs to know beyond the weights."""

    name: str  # for people; nothing depends on it
    family: str  # for people; nothing depends on it
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context: int  # tokens, prompt and output together
    norm_eps: float
    attention_scale: float  # scores are q.k times this
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    qk_norm: bool = False  # RMS norm of each q and k head before rope (Qwen3, Gemma-3)
    post_norms: bool = False  # norms after attention and after the MLP too (Gemma-3)
    tied_embedding: bool = False  # lm_head is the embedding matrix

    @property
    def num_layers(self) -> int:
        return len(self.layers)


class TensorEntry(Spec, frozen=True):
    """Where one tensor's bytes are. `name` is canonical, the same for every family and file format:

    `embedding` `output_norm` `lm_head`, and per layer `layers.N.` +
    `attn_norm q k v o q_bias k_bias v_bias q_norm k_norm post_attn_norm
    ffn_norm gate up down post_ffn_norm`.
    """

    name: str
    storage: Storage
    shape: tuple[int, ...]  # row-major; matrices are [out_features, in_features]
    num_bytes: int
    file: str = ""  # empty: the bytes are generated from `seed`, see engine.tensor_data
    offset: int = 0
    seed: int = 0  # 64 bits; of one tensor, so that a renamed entry (tied head) keeps its bytes
    add: float = 0.0  # added to every value after reading (Hugging Face Gemma stores norm - 1)


class ModelFootprint(Spec, frozen=True):
    """What the planner knows of a model: sizes, no names."""

    layer_weight_bytes: tuple[int, ...]  # resident bytes of each decoder layer
    embedding_bytes: int  # resident bytes of the embedding on a stage that has it
    head_bytes: int  # resident bytes of final norm + lm_head on a stage that has it
    kv_bytes_per_token: tuple[int, ...]  # per layer: keys and values of one token
    max_context: int
    hidden_bytes_per_token: int  # what crosses a link for one token
    layer_kinds: tuple[int, ...] = ()  # layers with one number cost the same; empty: all do
    num_layer_params: tuple[int, ...] = ()  # multiplications per token of each layer; empty: two per byte
    num_head_params: int = 0  # 0: two per byte
    activation_bytes_per_token: int = 0  # what a stage needs while it computes, per token of a step

    def layer_kind(self, layer: int) -> int:
        return self.layer_kinds[layer] if self.layer_kinds else 0


# --------------------------------------------------------------------------- clusters and plans


class TimeTable(Spec, frozen=True):
    """Measured seconds on a grid. Between its points and beyond them `partitioning.costs` goes on in straight lines."""

    num_tokens: tuple[int, ...]  # ascending
    contexts: tuple[int, ...]  # ascending: tokens in the KV cache of each sequence
    seconds: tuple[tuple[float, ...], ...]  # [context][number of tokens]


class LayerProfile(Spec, frozen=True):
    """One decoder layer on one node."""

    decode: TimeTable  # so many sequences with one generated token each
    prefill: TimeTable  # so many tokens of one prompt


class ComputeProfile(Spec, frozen=True):
    """What steps of one model take on one node, as measured there with its own weights and kernels."""

    layers: tuple[LayerProfile, ...]  # one for each kind of layer, in the order of their numbers
    head: TimeTable  # norm, lm_head and sampling of so many tokens; its one context is 0
    step_s: float  # what a step takes on a stage beside its layers and the head


class NodeSpec(Spec, frozen=True):
    """A machine that can hold one stage, as measured or as described by hand."""

    name: str
    memory_bytes: int  # what weights, KV cache and activations may use together
    memory_bandwidth_bytes_per_s: float
    device: str = "cpu"
    flops_per_s: float = 0.0  # of matrix products; 0: not known, taken from the memory bandwidth
    site: str = ""  # for people: where it stands
    profile: ComputeProfile | None = None  # of the model that is planned; None: a bound from the rates stands in


class LinkSpec(Spec, frozen=True):
    source: str
    target: str
    latency_s: float  # one way
    bandwidth_bytes_per_s: float
    software_s: float = 0.0004  # work on a message at both ends: schedule or check, encode, decode, hand over


class ClusterSpec(Spec, frozen=True):
    """Nodes and the links between them; the coordinator's end of a link is called `coordinator`."""

    nodes: tuple[NodeSpec, ...]
    links: tuple[LinkSpec, ...] = ()  # a missing pair is as its other direction, or else the planner's default link


Objective = Literal["latency", "throughput", "balanced"]


class WorkloadSpec(Spec, frozen=True):
    """What the plan must be able to hold at once."""

    concurrency: int = 1  # sequences in flight
    context: int = 2048  # tokens of KV cache per sequence
    kv_tokens: int = 0  # tokens of KV cache in all, when less than concurrency x context; 0: that product
    objective: Objective = "latency"
    prompt_tokens: int = 512  # of the prompt whose TTFT is predicted
    max_num_batched_tokens: int = 512  # tokens of one step at most: activations must fit

    def total_kv_tokens(self, context: int) -> int:
        """Tokens of KV cache that every stage must hold, when sequences have `context` tokens at most."""
        tokens = self.concurrency * context
        return min(tokens, self.kv_tokens) if self.kv_tokens else tokens


class LayerPin(Spec, frozen=True):
    """This node holds exactly the layers [start, end)."""

    node: str
    start: int
    end: int


class PlanConstraints(Spec, frozen=True):
    """What people ask of a plan beyond its being good."""

    layers: tuple[LayerPin, ...] = ()
    exclude: tuple[str, ...] = ()  # nodes that hold nothing
    max_nodes: int = 0  # 0: any number
    use_all: bool = False  # every node that is not excluded holds layers, also where leaving it out were faster


class StagePlan(Spec, frozen=True):
    """One stage: which layers live on which worker, and what that costs."""

    worker: str
    start: int
    end: int  # layers [start, end)
    embedding: bool  # this stage turns token ids into hidden states
    head: bool  # this stage has final norm, lm_head and sampler
    weight_bytes: int
    kv_bytes: int  # reserved for the workload's KV cache
    predicted_compute_s: float  # one decode token of one stream through this stage
    activation_bytes: int = 0  # reserved for the largest step
    predicted_hop_s: float = 0.0  # one decode token on its way to this stage

    @property
    def num_layers(self) -> int:
        return self.end - self.start

    @property
    def num_bytes(self) -> int:
        """All that it needs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes


class Plan(Spec, frozen=True):
    """A placement with its predicted figures, its bound and what binds."""

    stages: tuple[StagePlan, ...]
    predicted_tpot_s: float  # compute + links + software of one decode token, one stream
    bound_tpot_s: float  # memory and links alone: no implementation can be faster on these stages
    binding: str  # the constraint that binds, in words
    kv_capacity_tokens: int  # tokens of KV cache that every stage can hold
    objective: Objective = "latency"
    cost_s: float = 0.0  # what was made small: seconds, see partitioning.objective
    gap: float = 0.0  # by how much of `cost_s` a better plan might beat this one; 0: proven that none does
    predicted_ttft_s: float = 0.0  # of a prompt of `prompt_tokens`, on an idle cluster
    prompt_tokens: int = 0
    predicted_tokens_per_s: float = 0.0  # of `concurrency` streams together, decoding
    concurrency: int = 1
    return_hop_s: float = 0.0  # from the last stage to the coordinator
    left_out: tuple[str, ...] = ()  # nodes of the cluster that hold nothing
    pin_cost_s: float = 0.0  # how much of `cost_s` the constraints cost: 0 without any


# ------------------------------------------------------------------------------------- requests

FinishReason = Literal["stop", "length", "abort", "error"]

PrefixReuse = Literal["all", "prompt", "off"]
"""Whose KV cache a request may start from: any earlier token's, prompt tokens' only, nobody's.

`prompt` is for engines that compute prompt and generated tokens with different kernels: there, what was generated
has other bits than the same tokens read as a prompt.
"""

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


class GrammarSpec(Spec, frozen=True):
    """What every output must match. Compiled where the tokenizer is; stages only ever see token masks."""

    kind: GrammarKind
    text: str = ""  # the schema (JSON), the pattern, a JSON list of strings, the grammar; json_object: empty
    param: str = "response_format"  # the request field that asked for it, for error messages


class SamplingSpec(Spec, frozen=True):
    """x = argmax(logits / temperature + Gumbel(seed, position)) after top-k, top-p and min-p.

    The logits are first changed by bias, penalties and what `SamplingContext` forbids. Travels to the last
    stage with every step that samples. temperature 0 is greedy.
    """

    seed: int = 0  # 64 bits, unsigned; the coordinator draws one when the client gives none
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from every token of the output so far
    frequency_penalty: float = 0.0  # subtracted for every occurrence in the output so far
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of prompt and output tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    num_logprobs: int | None = None  # None: none; k: the sampled token's and those of the k likeliest

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0


class Request(Spec, frozen=True):
    """An accepted generation request as the scheduler sees it: token ids in, token ids out."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int  # output tokens at most, >= 1
    sampling: SamplingSpec = SamplingSpec()
    stop_token_ids: tuple[int, ...] = ()  # the output ends with `stop` when one is sampled
    min_tokens: int = 0  # no stop token is sampled before
    num_prompt_logprobs: int | None = None  # None: none; k: every prompt token's but the first, and the k likeliest
    grammar: GrammarSpec | None = None
    tenant: str = ""  # whose request: tenants share the cluster evenly, however many requests each has
    priority: int = 0  # smaller numbers first, over all tenants; preempted last
    timeout_s: float | None = None  # ends with an error when it has not ended so long after it arrived


class TokenLogprobs(Spec, frozen=True):
    """Natural logarithms of the model's own probabilities: before bias, penalties, masks and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the likeliest, likeliest first


class RequestOutput(Spec, frozen=True):
    """What one update added to a request. The last one of a request has a finish reason."""

    request_id: str
    token_ids: tuple[int, ...]  # new tokens, in order; a stop token is included
    num_prompt_tokens: int
    num_output_tokens: int  # so far
    finish_reason: FinishReason | None = None
    error: str = ""  # one line, with finish_reason "error"
    timed_out: bool = False  # with finish_reason "error": its `timeout_s` has passed
    num_cached_tokens: int = 0  # prompt tokens that were found in the KV cache instead of computed
    logprobs: tuple[TokenLogprobs, ...] = ()  # of token_ids, when the request asks for them
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1, 2, ...: all of them, with the first output


# ---------------------------------------------------------------------------------------- steps


class SamplingContext(Spec, frozen=True):
    """What sampling one position needs to know of its sequence: a stage remembers no tokens."""

    output_counts: tuple[tuple[int, int], ...] = ()  # (token id, occurrences in the output), for penalties
    prompt_token_ids: tuple[int, ...] = ()  # each once; for the repetition penalty
    banned_token_ids: tuple[int, ...] = ()  # not sampled here, unless nothing else is allowed
    mask: bytes = b""  # deflated (zlib); bit i%8 of byte i//8 says whether token i is allowed; empty: all are


class SequenceStep(Spec, frozen=True):
    """The part of one sequence in one step: `token_ids` go to positions [start, start + num_tokens)."""

    sequence_id: int
    start: int
    num_tokens: int
    prompt_length: int  # positions below this are prompt tokens, whatever the chunking
    token_ids: tuple[int, ...] = ()  # for the first stage only; stripped after it
    sampling: SamplingSpec | None = None  # set: sample the token after the last position
    context: SamplingContext | None = None  # only with `sampling`, and only when it says something
    scored_token_ids: tuple[int, ...] = ()  # the tokens at start + 1, start + 2, ...: report their logprobs
    num_scored_top: int = 0  # and so many of the likeliest at each of these positions

    @property
    def num_prompt_tokens(self) -> int:
        """How many of its tokens belong to the prompt."""
        return max(0, min(self.num_tokens, self.prompt_length - self.start))


class Adoption(Spec, frozen=True):
    """A new sequence starts with the first `num_tokens` cached tokens of another."""

    sequence_id: int
    source_id: int
    num_tokens: int
    keeps_source: bool  # True: a copy; False: the cache itself, and the source is gone


class StepPlan(Spec, frozen=True):
    """One pass through all stages, decided by the scheduler. Sequences are told, never asked for.

    A stage first drops `released`, then carries out `adopted`, in order, then computes.
    """

    step_id: int
    slot: int
    sequences: tuple[SequenceStep, ...]
    released: tuple[int, ...] = ()  # sequence ids whose KV cache is dropped before this step
    adopted: tuple[Adoption, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self.sequences)


class SampledToken(Spec, frozen=True):
    sequence_id: int
    position: int  # of the sampled token in its sequence
    token_id: int
    logprobs: TokenLogprobs | None = None


class ScoredTokens(Spec, frozen=True):
    """Logprobs of known tokens: those that a SequenceStep named in `scored_token_ids`."""

    sequence_id: int
    start: int  # position of the first of them: one after the step's own start
    logprobs: tuple[TokenLogprobs, ...]


class StageTiming(Spec, frozen=True):
    """Stamped by a stage on its own monotonic clock: only differences within a stage compare."""

    worker: str
    received_s: float
    started_s: float
    finished_s: float
    received_bytes: int  # the message that brought this step here


class StepResult(Spec, frozen=True):
    step_id: int
    samples: tuple[SampledToken, ...]
    timings: tuple[StageTiming, ...] = ()
    scores: tuple[ScoredTokens, ...] = ()


# --------------------------------------------------------------------------------------- status

WorkerPhase = Literal["starting", "joined", "measuring", "loading", "ready", "standby", "lost"]
"""standby: the plan left it out; it holds nothing, and nothing waits for it."""

ClusterPhase = Literal["starting", "measuring", "loading", "ready", "failed", "stopping"]


class WorkerStatus(Spec, frozen=True):
    name: str
    phase: WorkerPhase
    start: int = 0
    end: int = 0
    embedding: bool = False
    head: bool = False
    device: str = ""
    host: str = ""
    pid: int = 0
    memory_bytes: int = 0  # what it may use
    weight_bytes: int = 0  # planned
    resident_bytes: int = 0  # of the whole process, last heartbeat
    kv_used_bytes: int = 0
    load_fraction: float = 0.0


class StageSpeed(Spec, frozen=True):
    worker: str
    compute_s: float


class StreamSpeed(Spec, frozen=True):
    """Where the time of one generated token goes while no other request runs."""

    context: int  # tokens in the KV cache before it
    tpot_s: float  # the whole step, from scheduling it to holding its token
    stages: tuple[StageSpeed, ...]  # in pipeline order

    @property
    def between_s(self) -> float:
        """What no stage computed: links, and the software at their ends and in the coordinator."""
        return self.tpot_s - sum(stage.compute_s for stage in self.stages)


class MeasuredSpeed(StreamSpeed, frozen=True):
    """Medians over the last such steps; the context is their mean."""

    num_steps: int


class ClusterStatus(Spec, frozen=True):
    """A snapshot for `/status`, `butterfly status` and `/ready`."""

    phase: ClusterPhase
    epoch: int
    model: str
    workers: tuple[WorkerStatus, ...]
    plan: Plan | None = None
    running_requests: int = 0
    waiting_requests: int = 0
    kv_used_tokens: int = 0  # of plan.kv_capacity_tokens: held by running requests
    kv_kept_tokens: int = 0  # held by finished ones, for the next request with the same beginning
    detail: str = ""  # one line: why not ready; when ready, which workers on standby were lost
    cluster: ClusterSpec | None = None  # as measured, with profiles of this model
    measured: MeasuredSpeed | None = None  # None: no request has run alone yet
    predicted: StreamSpeed | None = None  # by the planner's costs, at the context of `measured`
