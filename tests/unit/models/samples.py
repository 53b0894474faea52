"""Tiny model files for these tests: GGUF files, Hugging Face folders, tokenizers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from butterfly.models.random_model import byte_tokenizer

Tensor = np.ndarray[Any, Any]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, LAYERS = 64, 4, 2, 16, 96, 260, 2


def llama_metadata() -> dict[str, Any]:
    """Return what a small Llama GGUF states, tokenizer included."""
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*_byte_pieces(), "ab", "<|im_start|>", "<|im_end|>", "<think>"],
        "tokenizer.ggml.token_type": np.array([1] * 257 + [3, 3, 4], dtype=np.int32),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 258,
    }


def _byte_pieces() -> list[str]:
    vocab = byte_tokenizer(256).get_vocab()
    return sorted(vocab, key=lambda piece: int(vocab[piece]))


def llama_tensors(*, tied: bool = False, layers: int = LAYERS) -> dict[str, Tensor]:
    """Return zeros of the right shapes under GGUF names."""
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for n in range(layers):
        shapes |= {
            f"blk.{n}.attn_norm.weight": (HIDDEN,),
            f"blk.{n}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{n}.attn_k.weight": (kv, HIDDEN),
            f"blk.{n}.attn_v.weight": (kv, HIDDEN),
            f"blk.{n}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{n}.ffn_norm.weight": (HIDDEN,),
            f"blk.{n}.ffn_gate.weight": (FFN, HIDDEN),
            f"blk.{n}.ffn_up.weight": (FFN, HIDDEN),
            f"blk.{n}.ffn_down.weight": (HIDDEN, FFN),
        }
    if not tied:
        shapes["output.weight"] = (VOCAB, HIDDEN)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    arch: str = "llama",
    quantized: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a GGUF file; the tensors named in `quantized` are stored that way."""
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        kind = (quantized or {}).get(name)
        if kind is None:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)


def tiny_llama(path: Path, *, drop: Sequence[str] = (), **changes: Any) -> Path:
    """Write a small Llama with some metadata replaced (`llama__block_count=3`) and some tensors dropped."""
    metadata = {**llama_metadata(), **{key.replace("__", "."): value for key, value in changes.items()}}
    tensors = {name: tensor for name, tensor in llama_tensors().items() if name not in drop}
    return write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, tensors)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Path:
    """Write a safetensors file of (dtype, shape, bytes), without torch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def add_tokenizer(folder: Path, vocab_size: int) -> None:
    """Put a byte-level tokenizer.json into a model folder."""
    byte_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
