"""One row per family: what transformers makes of a configuration is what we make of its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models import open_model
from butterfly.models.families import Family, families, register
from butterfly.models.rope import llama3_divisors
from tests.unit.models.samples import add_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}

ROWS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **LLAMA3}),
    "llama-tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32),
    "llama-linear": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=32),
    "mistral-open": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2-windows": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=3
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=16),
    "gemma3-scaled": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        query_pre_attn_scalar=168,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}


def save(config: Any, folder: Path) -> torch.nn.Module:
    """Save a random model of this configuration, with a tokenizer, and return it."""
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)  # type: ignore[operator]
    add_tokenizer(folder, 300)
    return model


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def inverse_frequencies(rope: Any) -> torch.Tensor:
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float64) / rope.dim
    divisors = torch.tensor(rope.freq_divisors or [1.0] * (rope.dim // 2), dtype=torch.float64)
    frequencies: torch.Tensor = 1.0 / (rope.theta**exponents * divisors)
    return frequencies


@pytest.mark.parametrize("row", ROWS)
def test_the_spec_says_what_transformers_does(tmp_path: Path, row: str) -> None:
    config = ROWS[row]()
    oracle = save(config, tmp_path)
    model = open_model(str(tmp_path))
    spec = model.spec
    head_dim = getattr(config, "head_dim", None) or 16
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads) == (64, 7, 4, 2)
    assert (spec.head_dim, spec.intermediate_size, spec.vocab_size, spec.max_context) == (head_dim, 96, 300, 512)
    assert spec.tied_embedding == config.tie_word_embeddings
    assert spec.norm_eps == config.rms_norm_eps
    attention = oracle.get_submodule("model.layers.0.self_attn")
    assert spec.attention_scale == pytest.approx(attention.scaling)
    assert not any(rope.interleaved for rope in spec.ropes)
    kinds = (
        getattr(config, "layer_types", None)
        or ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"] * 7
    )
    for layer, kind in zip(spec.layers, kinds, strict=True):
        assert layer.window == (config.sliding_window if kind == "sliding_attention" else None)
        rotary = oracle.get_submodule("model.rotary_emb")
        name = "inv_freq" if hasattr(rotary, "inv_freq") else f"{kind}_inv_freq"
        expected = getattr(rotary, name).double()
        torch.testing.assert_close(inverse_frequencies(spec.ropes[layer.rope]), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("row", ROWS)
def test_every_parameter_of_transformers_is_placed(tmp_path: Path, row: str) -> None:
    oracle = save(ROWS[row](), tmp_path)
    model = open_model(str(tmp_path))
    parameters = dict(oracle.named_parameters())
    assert len(model.tensors) == len(parameters)
    assert sorted(entry.shape for entry in model.tensors.values()) == sorted(
        tuple(p.shape) for p in parameters.values()
    )
    raw = (tmp_path / "model.safetensors").read_bytes()
    entry = model.tensors["layers.3.k"]
    read = torch.frombuffer(bytearray(raw[entry.offset : entry.offset + entry.num_bytes]), dtype=torch.float32)
    assert torch.equal(read.reshape(entry.shape), parameters["model.layers.3.self_attn.k_proj.weight"])


def test_gemma_norms_are_stored_minus_one_and_the_embedding_is_scaled(tmp_path: Path) -> None:
    save(ROWS["gemma3"](), tmp_path)
    model = open_model(str(tmp_path))
    assert {entry.name.rpartition(".")[2] for entry in model.tensors.values() if entry.add == 1.0} == {
        "attn_norm", "post_attn_norm", "ffn_norm", "post_ffn_norm", "q_norm", "k_norm", "output_norm"
    }  # fmt: skip
    assert model.spec.embedding_scale == pytest.approx(sqrt(64))
    assert (model.spec.activation, model.spec.post_norms, model.spec.qk_norm) == ("gelu_tanh", True, True)


def test_configs_of_transformers_4_mean_the_same(tmp_path: Path) -> None:
    def to_old(config: dict[str, Any]) -> None:
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in parameters.items()}
        del config["head_dim"]

    save(ROWS["llama"](), tmp_path)
    new = open_model(str(tmp_path))
    edit_config(tmp_path, to_old)
    assert open_model(str(tmp_path)).spec == new.spec


def test_gemma_configs_of_transformers_4_mean_the_same(tmp_path: Path) -> None:
    def to_old(config: dict[str, Any]) -> None:
        for key in ("rope_parameters", "layer_types", "_sliding_window_pattern", "tie_word_embeddings"):
            del config[key]
        config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}

    save(ROWS["gemma3"](), tmp_path)
    new = open_model(str(tmp_path))
    edit_config(tmp_path, to_old)
    assert open_model(str(tmp_path)).spec == new.spec


def test_older_qwen_configs_say_which_layers_slide_by_number(tmp_path: Path) -> None:
    save(ROWS["qwen2-windows"](), tmp_path)
    new = open_model(str(tmp_path))
    edit_config(tmp_path, lambda config: config.pop("layer_types"))
    assert open_model(str(tmp_path)).spec == new.spec
    assert [layer.window for layer in new.spec.layers] == [None] * 3 + [16] * 4


@pytest.mark.parametrize("prefixes", [("language_model.", ""), ("model.language_model.", "model.")])
def test_gemma_with_eyes_opens_as_text(tmp_path: Path, prefixes: tuple[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    config = transformers.Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=16)
    save(config, tmp_path)
    plain = open_model(str(tmp_path))
    inner, outer = prefixes
    tensors = {
        inner + (name if inner == "language_model." else name.removeprefix("model.")): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    tensors[f"{outer}vision_tower.embeddings.weight"] = torch.zeros(3)
    tensors[f"{outer}multi_modal_projector.norm.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    wrapped = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(wrapped))
    model = open_model(str(tmp_path))
    assert model.spec == plain.spec
    assert model.tensors.keys() == plain.tensors.keys()


def change(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(values)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (change(model_type="gpt_neox"), UnsupportedModelError, "'gpt_neox' is not supported; supported: gemma3.*qwen3"),
        (change(model_type=None), ModelFormatError, "model_type is missing"),
        (change(quantization_config={"quant_method": "awq"}), UnsupportedModelError, "'awq'"),
        (change(hidden_size=None), ModelFormatError, "hidden_size is missing"),
        (change(hidden_size="big"), ModelFormatError, "hidden_size is 'big', not an integer"),
        (change(vocab_size=301), ModelFormatError, "vocab_size is 301, the embedding has 300 rows"),
        (change(num_hidden_layers=8), ModelFormatError, "layer"),
        (change(hidden_act="relu"), UnsupportedModelError, "'relu' is not supported; supported: silu"),
        (change(layer_types=["chunked_attention"] * 7), UnsupportedModelError, "'chunked_attention'"),
        (change(layer_types=["sliding_attention"] * 7), ModelFormatError, "need a window"),
        (change(layer_types=["full_attention"]), ModelFormatError, "1 layer types for 7 layers"),
        (change(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), UnsupportedModelError, "'yarn'"),
        (change(rope_parameters={"rope_type": "dynamic"}), UnsupportedModelError, "'dynamic'"),
        (change(rope_parameters={"rope_type": "longrope"}), UnsupportedModelError, "'longrope'"),
        (change(rope_parameters={"rope_type": "llama3"}), ModelFormatError, "llama3 lacks or spoils 'factor'"),
        (change(rope_parameters={"rope_theta": "hot"}), ModelFormatError, "rope_theta is 'hot'"),
        (change(rope_parameters=3), ModelFormatError, "rope_parameters is 3, not an object"),
    ],
)
def test_configs_that_are_refused(
    qwen_folder: Path, edit: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    edit_config(qwen_folder, edit)
    with pytest.raises(error, match=message) as caught:
        open_model(str(qwen_folder))
    assert "\n" not in str(caught.value)


@pytest.fixture
def qwen_folder(tmp_path: Path) -> Path:
    save(ROWS["qwen2"](), tmp_path)
    return tmp_path


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_that_have_no_place_are_refused(tmp_path: Path, field: str) -> None:
    save(transformers.LlamaConfig(**SIZES, **{field: True}), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"(o_proj|down_proj)\.bias"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_softcapping_is_refused(tmp_path: Path, field: str) -> None:
    save(ROWS["gemma3"](), tmp_path)
    edit_config(tmp_path, change(**{field: 30.0}))
    with pytest.raises(UnsupportedModelError, match=field):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", r"config\.json: not a JSON object"),
        ("config.json", "[]", r"config\.json: not a JSON object"),
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer"),
        ("generation_config.json", "x", r"generation_config\.json: not a JSON object"),
        ("tokenizer_config.json", "x", r"tokenizer_config\.json: not a JSON object"),
    ],
)
def test_spoiled_companion_files(qwen_folder: Path, file: str, text: str, message: str) -> None:
    (qwen_folder / file).write_text(text)
    with pytest.raises(ModelFormatError, match=message):
        open_model(str(qwen_folder))


def test_a_missing_tokenizer_is_named(qwen_folder: Path) -> None:
    (qwen_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json is missing"):
        open_model(str(qwen_folder))


def test_templates_and_end_tokens_of_a_folder(qwen_folder: Path) -> None:
    (qwen_folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    stated = {"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{eos_token}}"}]}
    (qwen_folder / "tokenizer_config.json").write_text(json.dumps({**stated, "eos_token": {"content": "<300>"[:1]}}))
    model = open_model(str(qwen_folder))
    assert model.eos_token_ids == (7, 9, ord("<"))
    assert model.chat_template is not None
    assert model.chat_template.render([]) == "<"
    (qwen_folder / "chat_template.jinja").write_text("from the file")
    template = open_model(str(qwen_folder)).chat_template
    assert template is not None
    assert template.render([]) == "from the file"


def test_llama3_blends_between_the_bands() -> None:
    divisors = llama3_divisors(5e5, 128, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert list(divisors) == sorted(divisors)
    assert any(1.0 < divisor < 8.0 for divisor in divisors)


def test_every_family_has_a_row_and_names_every_tensor_in_both_formats() -> None:
    tested = {re.split("-", row)[0] for row in ROWS}
    for name, family in families().items():
        assert name in tested
        assert family.hf_names.keys() == family.gguf_names.keys()


def test_a_family_cannot_be_claimed_twice() -> None:
    llama = families()["llama"]
    with pytest.raises(ValueError, match="both claim"):
        register(Family(name="other", build=llama.build, hf_model_types=("mistral",), gguf_architectures=()))
    assert "other" not in families()
