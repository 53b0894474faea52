"""From a file's tensor names to canonical ones, with every name and shape checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.families import Family
from butterfly.models.storage import StoredTensor
from butterfly.specs import ModelSpec, TensorEntry

EMBEDDING, OUTPUT_NORM, LM_HEAD = "embedding", "output_norm", "lm_head"

LAYER_TENSORS = (
    "attn_norm",
    "q",
    "k",
    "v",
    "o",
    "q_bias",
    "k_bias",
    "v_bias",
    "q_norm",
    "k_norm",
    "post_attn_norm",
    "ffn_norm",
    "gate",
    "up",
    "down",
    "post_ffn_norm",
)
"""Every canonical name within a layer, in the order in which they are listed."""

GGUF_EMBEDDING, GGUF_LM_HEAD = "token_embd.weight", "output.weight"
HF_EMBEDDING = "model.embed_tokens.weight"

# What text generation does without: rope tables that are computed, and the vision half of Gemma-3.
_IGNORED_PREFIXES = ("rope_freqs.", "vision_tower.", "multi_modal_projector.")
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn_rot_embd.weight")


@dataclass(frozen=True)
class NameMap:
    """How one file format spells the names of one family."""

    ends: Mapping[str, str]  # embedding, output_norm, lm_head
    layer_prefix: str  # with {} for the layer's number
    layer: Mapping[str, str]
    norm_add: float = 0.0

    def spell(self, canonical: str) -> str:
        """Return the file's name for a canonical one."""
        if canonical in self.ends:
            return self.ends[canonical]
        _, number, name = canonical.split(".")
        return self.layer_prefix.format(number) + self.layer[name]


def gguf_names(family: Family) -> NameMap:
    ends = {EMBEDDING: GGUF_EMBEDDING, OUTPUT_NORM: "output_norm.weight", LM_HEAD: GGUF_LM_HEAD}
    return NameMap(ends, "blk.{}.", family.gguf_names)


def hf_names(family: Family) -> NameMap:
    ends = {EMBEDDING: HF_EMBEDDING, OUTPUT_NORM: "model.norm.weight", LM_HEAD: "lm_head.weight"}
    return NameMap(ends, "model.layers.{}.", family.hf_names, family.hf_norm_add)


def plain_hf_name(name: str) -> str:
    """Return the name as a text-only model has it: Gemma-3's image models wrap it in two ways."""
    for prefix in ("model.language_model.", "language_model."):
        if name.startswith(prefix):
            inner = name.removeprefix(prefix)
            return inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"
    for prefix in _IGNORED_PREFIXES:
        if name.startswith(f"model.{prefix}"):
            return name.removeprefix("model.")
    return name


def expected_shapes(spec: ModelSpec, family: Family) -> dict[str, tuple[int, ...]]:
    """Return the shape of every canonical tensor that the family has in a model of this spec."""
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "q": (q_size, hidden),
        "k": (kv_size, hidden),
        "v": (kv_size, hidden),
        "o": (hidden, q_size),
        "q_bias": (q_size,),
        "k_bias": (kv_size,),
        "v_bias": (kv_size,),
        "q_norm": (spec.head_dim,),
        "k_norm": (spec.head_dim,),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden)}
    for number in range(spec.num_layers):
        for name in LAYER_TENSORS:
            if name in family.hf_names:
                shapes[f"layers.{number}.{name}"] = layer.get(name, (hidden,))
    shapes[OUTPUT_NORM] = (hidden,)
    if not spec.tied_embedding:
        shapes[LM_HEAD] = (spec.vocab_size, hidden)
    return shapes


def map_weights(
    stored: Mapping[str, StoredTensor], names: NameMap, spec: ModelSpec, family: Family, where: str
) -> dict[str, TensorEntry]:
    """Return the entries by canonical name.

    Raises ModelFormatError for a missing tensor or one of another shape, UnsupportedModelError for a
    tensor that the family has no place for (dropping it would change the answers silently).
    """
    entries: dict[str, TensorEntry] = {}
    for canonical, shape in expected_shapes(spec, family).items():
        spelled = names.spell(canonical)
        tensor = stored.get(spelled)
        if tensor is None:
            if canonical.rpartition(".")[2] in family.optional_names:
                continue
            raise ModelFormatError(f"{where}: tensor {spelled} is missing")
        if tensor.shape != shape:
            raise ModelFormatError(f"{where}: tensor {spelled} has the shape {list(tensor.shape)}, not {list(shape)}")
        entries[canonical] = _entry(canonical, tensor, names.norm_add)
    _refuse_leftovers(stored, {names.spell(canonical) for canonical in entries}, names, where)
    return entries


def _entry(canonical: str, tensor: StoredTensor, norm_add: float) -> TensorEntry:
    return TensorEntry(
        name=canonical,
        storage=tensor.storage,
        shape=tensor.shape,
        num_bytes=tensor.num_bytes,
        file=tensor.file,
        offset=tensor.offset,
        add=norm_add if canonical.endswith("norm") else 0.0,
    )


def _refuse_leftovers(names_in_file: Iterable[str], used: set[str], names: NameMap, where: str) -> None:
    allowed: Callable[[str], bool] = lambda name: (  # noqa: E731
        name.startswith(_IGNORED_PREFIXES)
        or name.endswith(_IGNORED_SUFFIXES)
        or name == names.ends[LM_HEAD]  # a copy of a tied embedding
    )
    leftovers = [name for name in names_in_file if name not in used and not allowed(name)]
    if leftovers:
        raise UnsupportedModelError(
            f"{where}: {len(leftovers)} tensor(s) that this family does not use, such as {sorted(leftovers)[0]}"
        )
