"""The models that benchmarks run: one real, one synthetic of a size that fills a small machine.

Both arms must open the same file, so the synthetic one is a GGUF with weights in it, not `random:...`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.cache import bench_cache_folder
from butterfly.models.gguf_file import Value, read_gguf
from butterfly.models.packages import packaged_file

WEIGHT_STD = 0.02  # a hidden state of norm 1 per element stays near it through a matrix of 2048 columns
_SEED = 20261122
_FORMAT = 1  # raise when the same shape gets other bytes
_Q4_0_WEIGHTS, _Q4_0_BYTES = 32, 18  # per block: a float16 scale, then 32 nibbles q for scale * (q - 8)
_RMS_OF_NIBBLES = 4.64  # of q - 8, for uniform q


@dataclass(frozen=True)
class LlamaShape:
    """A Llama whose matrices are all Q4_0. The vocabulary is SmolLM2's, whose tokenizer it borrows."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    max_context: int = 8192
    tied_embedding: bool = True  # the output matrix is the embedding: 1.07 G weights; else 1.17 G

    @property
    def file_name(self) -> str:
        heads = f"{self.num_heads}-{self.num_kv_heads}"
        ends = "tied" if self.tied_embedding else "untied"
        sizes = f"{self.hidden_size}x{self.num_layers}-{self.intermediate_size}-{heads}-{self.max_context}"
        return f"llama-{sizes}-{ends}-q4_0-v{_FORMAT}.gguf"


LLAMA_1B = LlamaShape(hidden_size=2048, num_layers=22, intermediate_size=5632, num_heads=32, num_kv_heads=4)
TINY_LLAMA = LlamaShape(
    hidden_size=64, num_layers=2, intermediate_size=96, num_heads=4, num_kv_heads=2, max_context=512
)


def smollm2_path() -> Path:
    """Return the GGUF of SmolLM2-135M-Instruct (Q4_1). Raises ModelNotFoundError naming the pip command."""
    return packaged_file("smollm2")


def synthetic_llama(folder: Path | None = None, shape: LlamaShape = LLAMA_1B) -> Path:
    """Return the GGUF of a Llama with seeded random weights, written on first use (600 MB for the default).

    `folder` is `models` in the benchmarks' cache when not given. Raises ModelNotFoundError without SmolLM2,
    whose tokenizer it takes, and OSError when the folder cannot be written.
    """
    folder = folder or bench_cache_folder() / "models"
    target = folder / shape.file_name
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
            unfinished = Path(scratch) / target.name
            _write(unfinished, shape)
            unfinished.replace(target)
    return target


def _write(path: Path, shape: LlamaShape) -> None:
    tokenizer = {
        key: value for key, value in read_gguf(smollm2_path()).metadata.items() if key.startswith("tokenizer.")
    }
    tokens = tokenizer["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    shapes = dict(_tensor_shapes(shape, len(tokens)))
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _describe(writer, shape, len(tokens))
        for key, value in tokenizer.items():
            writer.add_key_value(key, *_typed(value))
        for name, dims in shapes.items():
            kind = gguf.GGMLQuantizationType.F32 if len(dims) == 1 else gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, dims, np.dtype(np.float32), _num_bytes(dims), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        random = np.random.Generator(np.random.SFC64(_SEED))
        console = Console(stderr=True)
        for dims in track(shapes.values(), f"writing {path.name}", console=console, transient=True):
            writer.write_tensor_data(random_q4_0(random, dims) if len(dims) > 1 else np.ones(dims, np.float32))
    finally:
        writer.close()


def _describe(writer: gguf.GGUFWriter, shape: LlamaShape, vocab_size: int) -> None:
    writer.add_name(f"synthetic Llama {shape.hidden_size}x{shape.num_layers}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(shape.max_context)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.hidden_size // shape.num_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _typed(value: Value) -> tuple[Value, gguf.GGUFValueType, gguf.GGUFValueType | None]:
    """The value with its GGUF type and, for arrays, its items' type: as vocabularies in GGUF files have them."""
    kinds = gguf.GGUFValueType
    if isinstance(value, np.ndarray):
        is_float = np.issubdtype(value.dtype, np.floating)
        return value.tolist(), kinds.ARRAY, kinds.FLOAT32 if is_float else kinds.INT32
    if isinstance(value, list):
        return value, kinds.ARRAY, kinds.STRING
    if isinstance(value, bool):  # before int, which it also is
        return value, kinds.BOOL, None
    if isinstance(value, int):
        return value, kinds.UINT32, None
    if isinstance(value, float):
        return value, kinds.FLOAT32, None
    return value, kinds.STRING, None


def _tensor_shapes(shape: LlamaShape, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape (rows = output features) of each tensor, in the order of the file."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    kv_size = hidden // shape.num_heads * shape.num_kv_heads
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (kv_size, hidden),
        "attn_v": (kv_size, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    yield "token_embd.weight", (vocab_size, hidden)
    for number in range(shape.num_layers):
        for name, dims in layer.items():
            yield f"blk.{number}.{name}.weight", dims
    yield "output_norm.weight", (hidden,)
    if not shape.tied_embedding:
        yield "output.weight", (vocab_size, hidden)


def _num_bytes(dims: tuple[int, ...]) -> int:
    num_weights = int(np.prod(dims))
    return num_weights * 4 if len(dims) == 1 else num_weights // _Q4_0_WEIGHTS * _Q4_0_BYTES


def random_q4_0(random: np.random.Generator, dims: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return Q4_0 blocks of shape (num_blocks, 18) for a matrix of `dims`: mean 0, deviation WEIGHT_STD.

    Half of the scales are negative: q - 8 has the mean -0.5, which would else add up along every row.
    """
    num_blocks = int(np.prod(dims)) // _Q4_0_WEIGHTS
    blocks = random.integers(0, 256, (num_blocks, _Q4_0_BYTES), dtype=np.uint8)
    scales = np.full(num_blocks, WEIGHT_STD / _RMS_OF_NIBBLES, np.float16)
    scales[random.random(num_blocks) < 0.5] *= -1
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks
