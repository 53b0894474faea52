"""Clusters as measured or described, what is asked of them, and plans."""

from __future__ import annotations

from typing import Literal

from butterfly.specs.base import Spec


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


class CodecSpec(Spec, frozen=True):
    """A way to send hidden states over a link in fewer bytes. That answers stay as good is the promise of who puts it
    there: no planner can know."""

    name: str
    ratio: float  # encoded bytes / plain bytes
    encode_s_per_byte: float  # of plain bytes, at the source
    decode_s_per_byte: float  # of plain bytes, at the target


class LinkSpec(Spec, frozen=True):
    source: str
    target: str
    latency_s: float  # one way
    bandwidth_bytes_per_s: float
    software_s: float = 0.0004  # work on a message at both ends: schedule or check, encode, decode, hand over
    codecs: tuple[CodecSpec, ...] = ()  # that hidden states may be sent in; each message in the quickest, or plain


class ClusterSpec(Spec, frozen=True):
    """Nodes and the links between them; the coordinator's end of a link is called `coordinator`."""

    nodes: tuple[NodeSpec, ...]
    links: tuple[LinkSpec, ...] = ()  # a missing pair is as its other direction, or else the planner's default link


Objective = Literal["latency", "throughput", "balanced"]


# People ask for long contexts to be safe, and most of their requests are short.
_USUAL_CONTEXT = 512


class WorkloadSpec(Spec, frozen=True):
    """What the plan must be able to hold at once."""

    concurrency: int = 1  # sequences in flight
    context: int = 2048  # tokens of KV cache per sequence
    kv_tokens: int = 0  # tokens of KV cache in all, when less than concurrency x context; 0: that product
    objective: Objective = "latency"
    prompt_tokens: int = 512  # of the prompt whose TTFT is predicted
    max_num_batched_tokens: int = 512  # tokens of one step at most: activations must fit
    mean_context: int = 0  # tokens in the KV cache of a sequence on average; 0: half of `context`, at most 512

    def context_for_times(self, max_context: int) -> int:
        """Tokens in the KV cache of a sequence when its step is timed. `max_context` is the model's."""
        context = min(self.context, max_context)
        return min(self.mean_context or min(context // 2, _USUAL_CONTEXT), context)

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
    kv_bytes: int  # reserved for the workload's KV cache, and the hidden states that are kept beside it
    predicted_compute_s: float  # one decode token of one stream through this stage
    activation_bytes: int = 0  # reserved for the largest step
    predicted_hop_s: float = 0.0  # one decode token on its way to this stage
    codec: str = ""  # of a planned decode batch on its way to this stage; empty: plain

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
    mean_context: int = 0  # tokens in the KV cache of a sequence, at which decode is predicted
    return_hop_s: float = 0.0  # from the last stage to the coordinator
    left_out: tuple[str, ...] = ()  # nodes of the cluster that hold nothing
    pin_cost_s: float = 0.0  # how much of `cost_s` the constraints cost: 0 without any
