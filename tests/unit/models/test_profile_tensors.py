"""What a node is given to find out what steps of a model take on it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from butterfly.models import Model, open_model, profile_tensors
from butterfly.models.footprint import footprint

SIZES = "hidden=64,heads=4,kv_heads=2,vocab=300,bits=8"


def names(model: Model) -> tuple[tuple[int, ...], list[str]]:
    layers, tensors = profile_tensors(model)
    return layers, [entry.name for entry in tensors]


def names_of_layer(model: Model, layer: int) -> list[str]:
    return [name for name in model.tensors if name.startswith(f"layers.{layer}.")]


@pytest.mark.parametrize(
    ("reference", "layers"), [("random:llama,layers=3", (0,)), ("random:gemma3,layers=14,window=16", (0, 5))]
)
def test_one_layer_of_each_kind_and_the_head(reference: str, layers: tuple[int, ...]) -> None:
    model = open_model(f"{reference},{SIZES}")
    found, tensors = names(model)
    assert found == layers
    assert [model.footprint.layer_kinds[layer] for layer in layers] == list(range(len(layers)))
    assert tensors[-2:] == ["output_norm", "lm_head"]
    assert sorted(tensors[:-2]) == sorted(name for layer in layers for name in names_of_layer(model, layer))


def test_layers_that_are_stored_in_another_way_are_of_another_kind() -> None:
    model = open_model(f"random:llama,layers=4,{SIZES}")
    down = model.tensors["layers.2.down"]
    tensors = {**model.tensors, "layers.2.down": msgspec.structs.replace(down, storage="Q4_0")}
    mixed = replace(model, tensors=tensors, footprint=footprint(model.spec, tensors, "bfloat16"))
    assert mixed.footprint.layer_kinds == (0, 0, 1, 0)
    layers, found = profile_tensors(mixed)
    assert layers == (0, 2)
    assert tensors["layers.2.down"] in found
