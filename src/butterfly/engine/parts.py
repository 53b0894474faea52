"""The parts of a stage (layers, embedding, head) by what they were made of: what the next stage can take over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch

from butterfly.engine.decoder import DecoderLayer
from butterfly.engine.embedding import Embedding
from butterfly.engine.head import Head
from butterfly.engine.rope import Rope
from butterfly.specs import ModelSpec, StagePlan, TensorEntry, WeightFormat

Tensors = tuple[TensorEntry, ...]  # of one part; their names say which, and all of it says whether it is the same


class Recipe(NamedTuple):
    """What decides beside the tensors what becomes of them."""

    model: ModelSpec
    device: torch.device
    dtype: torch.dtype
    weights: WeightFormat


class Parts:
    """What was made by one recipe, by the tensors that went into each."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.ropes = [Rope(spec, recipe.device) for spec in recipe.model.ropes]
        self.layers: dict[Tensors, DecoderLayer] = {}
        self.embeddings: dict[Tensors, Embedding] = {}
        self.heads: dict[Tensors, Head] = {}

    def __contains__(self, tensors: Tensors) -> bool:
        return tensors in self.layers or tensors in self.embeddings or tensors in self.heads

    def drop_all_but(self, wanted: Collection[Tensors]) -> None:
        self.layers = {tensors: layer for tensors, layer in self.layers.items() if tensors in wanted}
        self.embeddings = {tensors: part for tensors, part in self.embeddings.items() if tensors in wanted}
        self.heads = {tensors: head for tensors, head in self.heads.items() if tensors in wanted}


class StageTensors(NamedTuple):
    """The tensors of a stage, part by part."""

    embedding: Tensors  # empty: the stage has none
    layers: tuple[Tensors, ...]
    head: Tensors  # empty: the stage has none

    def parts(self) -> Iterator[Tensors]:
        """Yield the tensors of each part that there is."""
        if self.embedding:
            yield self.embedding
        yield from self.layers
        if self.head:
            yield self.head


def group_tensors(stage: StagePlan, tensors: Sequence[TensorEntry]) -> StageTensors:
    """Return the tensors of each part of a stage. Raises KeyError with the name of one that is missing."""
    by_name = {entry.name: entry for entry in sorted(tensors, key=lambda entry: entry.name)}

    def of_layer(index: int) -> Tensors:
        return tuple(entry for name, entry in by_name.items() if name.startswith(f"layers.{index}."))

    return StageTensors(
        embedding=(by_name["embedding"],) if stage.embedding else (),
        layers=tuple(of_layer(index) for index in range(stage.start, stage.end)),
        head=(by_name["output_norm"], by_name["lm_head"]) if stage.head else (),
    )
