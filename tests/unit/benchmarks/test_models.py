"""The synthetic model: both arms must be able to open it, and its numbers must stay sane."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from benchmarks.models import LLAMA_1B, TINY_LLAMA, WEIGHT_STD, random_q4_0, synthetic_llama

from butterfly.models import open_model
from butterfly.models.gguf_file import read_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_llama(tmp_path_factory.mktemp("models"), TINY_LLAMA)


def test_butterfly_opens_it_with_the_shape_that_was_asked_for(tiny: Path) -> None:
    spec = open_model(str(tiny)).spec
    assert (spec.hidden_size, spec.num_layers, spec.intermediate_size) == (64, 2, 96)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (4, 2, 16, 49152)
    assert spec.tied_embedding
    assert spec.ropes[0].theta == 10_000.0


def test_its_tokenizer_is_smollm2s(tiny: Path) -> None:
    ours, real = open_model(str(tiny)).tokenizer, open_model("smollm2").tokenizer
    assert ours.encode("Once upon a time, 42!") == real.encode("Once upon a time, 42!")


def test_all_matrices_are_q4_0(tiny: Path) -> None:
    kinds = {(len(tensor.shape), tensor.storage) for tensor in read_gguf(tiny).tensors.values()}
    assert kinds == {(2, "Q4_0"), (1, "F32")}


def test_the_same_shape_gives_the_same_bytes_and_is_written_once(tiny: Path, tmp_path: Path) -> None:
    again = synthetic_llama(tmp_path, TINY_LLAMA)
    assert again.read_bytes() == tiny.read_bytes()
    again.write_bytes(b"kept")
    assert synthetic_llama(tmp_path, TINY_LLAMA).read_bytes() == b"kept"


def test_nothing_unfinished_is_left(tiny: Path) -> None:
    assert [path.name for path in tiny.parent.iterdir()] == [TINY_LLAMA.file_name]


def test_weights_have_no_mean_and_the_stated_deviation() -> None:
    blocks = random_q4_0(np.random.default_rng(1), (64, 2048))
    weights = gguf.quants.dequantize(blocks.reshape(64, -1), gguf.GGMLQuantizationType.Q4_0)
    assert weights.shape == (64, 2048)
    assert abs(weights.mean()) < WEIGHT_STD / 50
    assert weights.std() == pytest.approx(WEIGHT_STD, rel=0.01)


def test_the_large_one_has_the_shape_that_results_name() -> None:
    matrices = 2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 2048 * 5632
    assert LLAMA_1B.num_layers * matrices + 49152 * 2048 == pytest.approx(1.07e9, rel=0.005)
    assert LLAMA_1B.hidden_size // LLAMA_1B.num_heads * LLAMA_1B.num_kv_heads == 256
