"""GGUF files through `open_model`: figures, weights, end tokens, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from butterfly.errors import ConfigError, ModelFormatError, UnsupportedModelError
from butterfly.models import open_model, stage_tensors
from tests.unit.models.samples import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCAB,
    llama_metadata,
    llama_tensors,
    tiny_llama,
    write_gguf,
)


def test_a_small_llama(tmp_path: Path) -> None:
    model = open_model(str(tiny_llama(tmp_path / "tiny.gguf")))
    spec = model.spec
    assert (spec.family, spec.hidden_size, spec.num_layers, spec.head_dim) == ("llama", HIDDEN, LAYERS, HEAD_DIM)
    assert (spec.num_heads, spec.num_kv_heads, spec.intermediate_size) == (HEADS, KV_HEADS, FFN)
    assert (spec.vocab_size, spec.max_context, spec.tied_embedding) == (VOCAB, 128, False)
    assert spec.attention_scale == HEAD_DIM**-0.5
    assert spec.ropes[0].interleaved
    assert spec.ropes[0].freq_divisors == ()
    assert [layer.window for layer in spec.layers] == [None, None]
    assert model.display_name == "tiny"
    assert model.reference == str(tmp_path / "tiny.gguf")
    assert model.eos_token_ids == (258,)
    assert model.tensors["layers.1.down"].shape == (HIDDEN, FFN)
    assert len(model.tensors) == 3 + 9 * LAYERS


def test_entries_point_at_the_bytes(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["blk.1.ffn_norm.weight"] = np.arange(HIDDEN, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors)
    entry = open_model(str(path)).tensors["layers.1.ffn_norm"]
    assert Path(entry.file).is_absolute()
    raw = Path(entry.file).read_bytes()[entry.offset : entry.offset + entry.num_bytes]
    assert np.array_equal(np.frombuffer(raw, "<f4"), np.arange(HIDDEN))


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    assert open_model("m.gguf").tensors["embedding"].file == str(tmp_path / "m.gguf")


def test_without_an_output_matrix_the_embedding_is_the_head(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors(tied=True))
    model = open_model(str(path))
    assert model.spec.tied_embedding
    embedding, *_, lm_head = stage_tensors(model, 0, LAYERS, embedding=True, head=True)
    assert (embedding.name, lm_head.name) == ("embedding", "lm_head")
    assert (lm_head.file, lm_head.offset) == (embedding.file, embedding.offset)


def test_llama3_factors_and_linear_scaling_become_divisors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_DIM // 2).astype(np.float32)
    tensors = {**llama_tensors(), "rope_freqs.weight": factors}
    metadata = {**llama_metadata(), "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    plain = open_model(str(write_gguf(tmp_path / "a.gguf", llama_metadata(), tensors)))
    both = open_model(str(write_gguf(tmp_path / "b.gguf", metadata, tensors)))
    assert plain.spec.ropes[0].freq_divisors == tuple(factors.tolist())
    assert both.spec.ropes[0].freq_divisors == tuple((2 * factors).tolist())


def test_every_supported_matrix_storage_is_accepted(tmp_path: Path) -> None:
    metadata = {**llama_metadata(), "llama.embedding_length": 256, "llama.attention.key_length": HEAD_DIM}
    shapes = {name: tensor.shape for name, tensor in llama_tensors().items()}
    tensors = {
        name: np.zeros(tuple(256 if size in (HIDDEN, FFN) else size for size in shape), np.float32)
        for name, shape in shapes.items()
    }
    for n in range(LAYERS):
        tensors[f"blk.{n}.attn_q.weight"] = np.zeros((HEADS * HEAD_DIM, 256), np.float32)
        tensors[f"blk.{n}.attn_output.weight"] = np.zeros((256, HEADS * HEAD_DIM), np.float32)
    metadata["llama.feed_forward_length"] = 256
    kinds = {
        "blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q4_0,
        "blk.0.ffn_gate.weight": gguf.GGMLQuantizationType.Q4_1,
        "blk.1.ffn_up.weight": gguf.GGMLQuantizationType.Q5_0,
        "blk.1.ffn_gate.weight": gguf.GGMLQuantizationType.Q8_0,
        "blk.1.attn_q.weight": gguf.GGMLQuantizationType.BF16,
    }
    model = open_model(str(write_gguf(tmp_path / "m.gguf", metadata, tensors, quantized=kinds)))
    assert model.tensors["layers.0.up"].storage == "Q4_0"
    assert model.tensors["layers.0.gate"].storage == "Q4_1"
    assert model.tensors["layers.1.up"].storage == "Q5_0"
    assert model.tensors["layers.1.gate"].storage == "Q8_0"
    assert model.tensors["layers.1.q"].storage == "BF16"


def test_the_context_can_only_be_lowered(tmp_path: Path) -> None:
    path = str(tiny_llama(tmp_path / "m.gguf"))
    model = open_model(path, max_context=32)
    assert (model.spec.max_context, model.footprint.max_context) == (32, 32)
    for wrong in (129, 0):
        with pytest.raises(ConfigError, match=f"max context {wrong} .*128"):
            open_model(path, max_context=wrong)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"llama__block_count": None}, ModelFormatError, "lacks llama.block_count"),
        ({"llama__block_count": 3}, ModelFormatError, r"tensor blk\.2\.attn_norm\.weight is missing"),
        ({"llama__block_count": 1}, UnsupportedModelError, r"9 tensor\(s\) .* such as blk\.1\.attn_k\.weight"),
        ({"llama__block_count": 0}, ModelFormatError, "num_layers is 0"),
        ({"llama__attention__head_count": 0}, ModelFormatError, "is 0"),
        ({"llama__attention__head_count_kv": 3}, ModelFormatError, "cannot share"),
        (
            {"llama__feed_forward_length": 100},
            ModelFormatError,
            r"ffn_gate\.weight has the shape \[96, 64\], not \[100",
        ),
        ({"llama__expert_count": 8}, UnsupportedModelError, "mixture-of-experts"),
        ({"llama__rope__scaling__type": "yarn"}, UnsupportedModelError, "'yarn'"),
        ({"llama__rope__scaling__factor": 0.0}, ModelFormatError, "factor 0.0"),
        ({"llama__rope__freq_base": -1.0}, ModelFormatError, "base -1.0"),
        ({"llama__rope__dimension_count": 15}, ModelFormatError, "cannot rotate 15"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, ModelFormatError, "epsilon"),
        ({"llama__attention__value_length": 8}, UnsupportedModelError, "keys and values"),
        ({"tokenizer__ggml__tokens": None}, ModelFormatError, "no vocabulary"),
        ({"tokenizer__ggml__model": "bert"}, UnsupportedModelError, "'bert' .*gpt2, llama"),
        ({"tokenizer__ggml__eos_token_id": 9999}, ModelFormatError, "eos_token_id is 9999"),
        ({"tokenizer__ggml__merges": ["a q"]}, ModelFormatError, "merge 'a q'"),
        ({"tokenizer__ggml__merges": ["ab"]}, ModelFormatError, "merge 'ab'"),
    ],
)
def test_bad_metadata(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    path = tiny_llama(tmp_path / "m.gguf", **changes)
    with pytest.raises(error, match=message) as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors(), arch="mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba' is not supported; supported: gemma3, llama, qwen2, qwen3"):
        open_model(str(path))


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.1.attn_k.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFormatError, match=f"tensor {name} is missing"):
        open_model(str(tiny_llama(tmp_path / "m.gguf", drop=[name])))


def test_a_tensor_that_would_be_dropped_silently_is_refused(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "blk.0.attn_output.bias": np.zeros(HIDDEN, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), tensors)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_output\.bias"):
        open_model(str(path))


def test_qkv_biases_of_a_llama_are_taken(tmp_path: Path) -> None:
    biases = {
        f"blk.{n}.attn_{x}.bias": np.zeros(s, np.float32)
        for n in range(LAYERS)
        for x, s in (("q", 64), ("k", 32), ("v", 32))
    }
    model = open_model(str(write_gguf(tmp_path / "m.gguf", llama_metadata(), {**llama_tensors(), **biases})))
    assert model.tensors["layers.0.k_bias"].shape == (32,)


def test_a_broken_chat_template_costs_chat_but_not_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = open_model(str(tiny_llama(tmp_path / "a.gguf", tokenizer__chat_template="{{ messages[0].content }}!")))
    assert good.chat_template is not None
    assert good.chat_template.render([{"role": "user", "content": "hi"}]) == "hi!"
    bad = open_model(str(tiny_llama(tmp_path / "b.gguf", tokenizer__chat_template="{% if %}")))
    assert bad.chat_template is None
    assert "chat template is not valid" in caplog.text


def test_stage_tensors_partition_the_model(tmp_path: Path) -> None:
    model = open_model(str(tiny_llama(tmp_path / "m.gguf")))
    first = stage_tensors(model, 0, 1, embedding=True, head=False)
    last = stage_tensors(model, 1, 2, embedding=False, head=True)
    assert {entry.name for entry in (*first, *last)} == model.tensors.keys()
    assert len(first) + len(last) == len(model.tensors)
    assert [entry.name for entry in last[-2:]] == ["output_norm", "lm_head"]
    assert stage_tensors(model, 1, 1, embedding=False, head=False) == ()
    for start, end in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(ValueError, match="layers"):
            stage_tensors(model, start, end, embedding=False, head=False)
