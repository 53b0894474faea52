"""`random:FAMILY,...` references."""

from __future__ import annotations

import pytest

from butterfly.errors import ConfigError
from butterfly.models import open_model, stage_tensors
from butterfly.models.families import families


@pytest.mark.parametrize("family", sorted(families()))
def test_every_family_opens_with_defaults_and_has_all_its_tensors(family: str) -> None:
    model = open_model(f"random:{family}")
    assert (model.spec.family, model.display_name, model.eos_token_ids) == (family, f"random:{family}", ())
    entries = stage_tensors(model, 0, 4, embedding=True, head=True)
    assert len(entries) == len(model.tensors) + model.spec.tied_embedding
    assert all(entry.file == "" and entry.num_bytes > 0 for entry in entries)
    assert model.chat_template is None


def test_keys_set_what_they_say() -> None:
    keys = "hidden=128,layers=3,heads=8,kv_heads=2,head_dim=32,ffn=64,vocab=300,context=99,window=7,seed=5,bits=4"
    model = open_model(f"random:llama,{keys}")
    spec = model.spec
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads) == (128, 3, 8, 2)
    assert (spec.head_dim, spec.intermediate_size, spec.vocab_size, spec.max_context) == (32, 64, 300, 99)
    assert {layer.window for layer in spec.layers} == {7}
    assert len({entry.seed for entry in model.tensors.values()}) == len(model.tensors)
    assert model.tensors["layers.0.q"].shape == (256, 128)


@pytest.mark.parametrize(
    ("bits", "matrix", "embedding"),
    [(4, "Q4_0", "Q8_0"), (8, "Q8_0", "Q8_0"), (16, "BF16", "BF16"), (32, "F32", "F32")],
)
def test_bits_choose_the_storage(bits: int, matrix: str, embedding: str) -> None:
    model = open_model(f"random:qwen2,bits={bits}")
    assert model.tensors["layers.0.down"].storage == matrix
    assert model.tensors["lm_head"].storage == matrix
    assert model.tensors["embedding"].storage == embedding
    assert model.tensors["layers.0.attn_norm"].storage == "F32"
    assert model.tensors["layers.0.q_bias"].storage == "F32"


def test_gemma_alternates_windows() -> None:
    windows = [layer.window for layer in open_model("random:gemma3,layers=12,window=8").spec.layers]
    assert windows == ([8] * 5 + [None]) * 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("random:lama", "did you mean 'llama'"),
        ("random:", "no family ''"),
        ("random:llama,hiden=64", "unknown key 'hiden'; did you mean 'hidden'"),
        ("random:llama,zzz=1", "unknown key 'zzz'; known: hidden, layers"),
        ("random:llama,", "unknown key ''"),
        ("random:llama,hidden", "hidden must be a whole number"),
        ("random:llama,hidden=-3", "hidden must be a whole number"),
        ("random:llama,hidden=1e3", "hidden must be a whole number"),
        ("random:llama,layers=0", "layers must be at least 1"),
        ("random:llama,bits=5", "bits is 5; one of 4, 8, 16, 32"),
        ("random:llama,vocab=255", "at least 256"),
        ("random:llama,heads=8,kv_heads=3", "cannot share"),
        ("random:llama,heads=512,hidden=256", "head_dim is 0"),
        ("random:llama,head_dim=33", "even"),
        ("random:llama,hidden=72,heads=4,bits=4", "no whole"),
        ("random:qwen3,window=4", "qwen3 has no window"),
    ],
)
def test_wrong_references(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(reference)


def test_the_byte_tokenizer_round_trips_any_text() -> None:
    tokenizer = open_model("random:llama,vocab=300").tokenizer
    text = "Hello \n\t 你好 🎉 \x00"
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode([299]) == "<299>"
