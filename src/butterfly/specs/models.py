"""A model as data: its shape, its tensors, and what a planner needs to know of its sizes."""

from __future__ import annotations

from typing import Literal

from butterfly.specs.base import Spec

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
    border_bytes_per_token: int = 0  # hidden states that a stage keeps of what it handed on, per cached token

    def layer_kind(self, layer: int) -> int:
        return self.layer_kinds[layer] if self.layer_kinds else 0
