"""`random:FAMILY,key=value,...`: a model of any family and size whose weights are generated, not read.

For benchmarks and tests. The bytes come from a seed per tensor, hashed from the model's seed and the name, and
are made by the engine; here are only the figures, so that a model of any size opens at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from butterfly.errors import ConfigError, ModelFormatError
from butterfly.models.families import Family, families
from butterfly.models.hyperparameters import Hyperparameters
from butterfly.models.rope import Rope
from butterfly.models.storage import storage_bytes
from butterfly.models.tokenizer import byte_alphabet
from butterfly.models.weights import EMBEDDING, expected_shapes
from butterfly.specs import ModelSpec, Storage, TensorEntry

PREFIX = "random:"

KEYS: Mapping[str, str] = {
    "hidden": "size of the hidden state (512)",
    "layers": "number of layers (4)",
    "heads": "query heads (hidden / 64)",
    "kv_heads": "key/value heads (heads / 4 when that is whole, else heads)",
    "head_dim": "size of a head (hidden / heads)",
    "ffn": "intermediate size (3 x hidden)",
    "vocab": "vocabulary, at least 256 (4096)",
    "context": "longest context (4096)",
    "window": "sliding window (gemma3: 512; llama: none)",
    "seed": "of the weights (0)",
    "bits": "4, 8, 16 or 32 (16)",
}

_MATRIX_STORAGE: Mapping[int, Storage] = {4: "Q4_0", 8: "Q8_0", 16: "BF16", 32: "F32"}
_EMBEDDING_STORAGE: Mapping[int, Storage] = {4: "Q8_0", 8: "Q8_0", 16: "BF16", 32: "F32"}
_GEMMA_WINDOW = 512


@dataclass(frozen=True)
class RandomModel:
    """What `open_random` found in the reference."""

    spec: ModelSpec
    tensors: Mapping[str, TensorEntry]


def open_random(reference: str) -> RandomModel:
    """Return the model that `random:...` describes. Raises ConfigError naming the wrong part."""
    name, *pairs = reference.removeprefix(PREFIX).split(",")
    family = families().get(name)
    if family is None:
        raise ConfigError(f"{reference}: no family {name!r}{_nearest(name, families())}")
    values = _parse(reference, pairs)
    bits = values.get("bits", 16)
    if bits not in _MATRIX_STORAGE:
        raise ConfigError(f"{reference}: bits is {bits}; one of {', '.join(map(str, _MATRIX_STORAGE))}")
    try:
        spec = family.build(_figures(family, values, reference))
        tensors = {
            canonical: _entry(canonical, shape, bits, values.get("seed", 0))
            for canonical, shape in expected_shapes(spec, family).items()
            if canonical.rpartition(".")[2] not in family.optional_names
        }
    except ModelFormatError as error:
        raise ConfigError(str(error)) from error
    return RandomModel(spec, tensors)


def _parse(reference: str, pairs: list[str]) -> dict[str, int]:
    values: dict[str, int] = {}
    for pair in pairs:
        key, _, text = pair.strip().partition("=")
        if key not in KEYS:
            raise ConfigError(f"{reference}: unknown key {key!r}{_nearest(key, KEYS)}")
        if not (text.isascii() and text.isdigit()):
            raise ConfigError(f"{reference}: {key} must be a whole number, not {text!r}")
        values[key] = int(text)
        if values[key] == 0 and key != "seed":
            raise ConfigError(f"{reference}: {key} must be at least 1")
    return values


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _figures(family: Family, values: Mapping[str, int], reference: str) -> Hyperparameters:
    hidden = values.get("hidden", 512)
    heads = values.get("heads", max(1, hidden // 64))
    head_dim = values.get("head_dim", hidden // heads)
    if head_dim < 2 or head_dim % 2:
        raise ConfigError(f"{reference}: head_dim is {head_dim}; rotary embeddings need an even number")
    vocab = values.get("vocab", 4096)
    if vocab < 256:
        raise ConfigError(f"{reference}: vocab is {vocab}; the byte-level tokenizer needs at least 256")
    window = values.get("window", _GEMMA_WINDOW if family.name == "gemma3" else None)
    if window is not None and family.name in ("qwen2", "qwen3"):
        raise ConfigError(f"{reference}: {family.name} has no window here; llama and gemma3 do")
    return Hyperparameters(
        where=reference,
        name=f"random {family.name}",
        hidden_size=hidden,
        num_layers=values.get("layers", 4),
        num_heads=heads,
        num_kv_heads=values.get("kv_heads", heads if heads % 4 else heads // 4),
        head_dim=head_dim,
        intermediate_size=values.get("ffn", 3 * hidden),
        vocab_size=vocab,
        max_context=values.get("context", 4096),
        norm_eps=1e-6,
        rope=Rope(family.random_theta, head_dim),
        tied_embedding=family.ties_embedding,
        window=window,
    )


def _entry(canonical: str, shape: tuple[int, ...], bits: int, seed: int) -> TensorEntry:
    matrix = _EMBEDDING_STORAGE[bits] if canonical == EMBEDDING else _MATRIX_STORAGE[bits]
    storage = matrix if len(shape) > 1 else "F32"
    num_bytes = storage_bytes(storage, shape, f"random tensor {canonical}")
    return TensorEntry(
        name=canonical, storage=storage, shape=shape, num_bytes=num_bytes, seed=_tensor_seed(seed, canonical)
    )


def _tensor_seed(seed: int, name: str) -> int:
    """Return 64 bits that differ for every tensor of every model, and stay the same for ever."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def byte_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """Return a tokenizer whose ids 0 to 255 are the bytes; the rest stand for themselves, as `<300>`."""
    pieces = [*byte_alphabet(), *(f"<{token_id}>" for token_id in range(256, vocab_size))]
    backend = tokenizers.Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend
