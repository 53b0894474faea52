"""`open_model`: from a MODEL string to everything the rest of Butterfly needs to know of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import msgspec

from butterfly.errors import ConfigError, ModelFormatError, ModelNotFoundError
from butterfly.models import hub
from butterfly.models.chat_template import ChatTemplate
from butterfly.models.footprint import footprint
from butterfly.models.gguf_model import open_gguf
from butterfly.models.hf_folder import open_hf_folder
from butterfly.models.packages import ALIASES, Progress, packaged_file
from butterfly.models.parts import ModelParts, end_token_ids
from butterfly.models.random_model import PREFIX, byte_tokenizer, open_random
from butterfly.models.tokenizer import Tokenizer
from butterfly.models.weights import EMBEDDING, LAYER_TENSORS, LM_HEAD, OUTPUT_NORM
from butterfly.specs import ComputeDType, ModelFootprint, ModelSpec, TensorEntry, WeightFormat


@dataclass(frozen=True)
class Model:
    """A model as opened: nothing of its weights is in memory."""

    spec: ModelSpec
    tensors: Mapping[str, TensorEntry]  # by canonical name; a tied head has no entry of its own
    footprint: ModelFootprint
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]  # each ends an answer
    reference: str  # what the user wrote
    display_name: str  # short, for /v1/models


def open_model(
    reference: str,
    *,
    progress: Progress | None = None,
    dtype: ComputeDType = "bfloat16",
    max_context: int | None = None,
) -> Model:
    """Return the model behind a path, alias, hub id or `random:...`.

    `dtype` is what the footprint is computed for, with int4 weights; `max_context` (tokens) lowers the model's own
    limit,
    `progress` hears (what, done bytes, total bytes) while a file is fetched or assembled. Raises
    ModelNotFoundError, ModelFormatError, UnsupportedModelError or ConfigError, each with one line.
    """
    parts, display_name = _open_parts(reference, progress)
    spec = _limit_context(parts.spec, max_context)
    return Model(
        spec=spec,
        tensors=parts.tensors,
        footprint=footprint(spec, parts.tensors, dtype),
        tokenizer=parts.tokenizer,
        chat_template=parts.chat_template,
        eos_token_ids=end_token_ids(parts.tokenizer, parts.stated_eos_ids),
        reference=reference,
        display_name=display_name,
    )


def with_weights(model: Model, dtype: ComputeDType, weights: WeightFormat) -> Model:
    """Return the same model with the footprint that it has when its quantised matrices are held as `weights`."""
    return replace(model, footprint=footprint(model.spec, model.tensors, dtype, weights))


def limit_context(model: Model, max_context: int) -> Model:
    """Return the same model with a lower context limit in tokens. Raises ConfigError for a higher one."""
    spec = _limit_context(model.spec, max_context)
    return replace(model, spec=spec, footprint=msgspec.structs.replace(model.footprint, max_context=max_context))


def stage_tensors(model: Model, start: int, end: int, *, embedding: bool, head: bool) -> tuple[TensorEntry, ...]:
    """Return exactly the tensors of a stage with layers [start, end), in a fixed order.

    A tied head is the embedding's entry under the name `lm_head`.
    """
    if not 0 <= start <= end <= model.spec.num_layers:
        raise ValueError(f"layers [{start}, {end}) of a model with {model.spec.num_layers}")
    names = [EMBEDDING] if embedding else []
    names += [f"layers.{number}.{name}" for number in range(start, end) for name in LAYER_TENSORS]
    entries = [model.tensors[name] for name in names if name in model.tensors]
    if head:
        source = EMBEDDING if model.spec.tied_embedding else LM_HEAD
        entries += [model.tensors[OUTPUT_NORM], msgspec.structs.replace(model.tensors[source], name=LM_HEAD)]
    return tuple(entries)


def profile_tensors(model: Model) -> tuple[tuple[int, ...], tuple[TensorEntry, ...]]:
    """Return one layer of each kind, in the order of the kinds' numbers, and the tensors of these layers and the head.

    That is what a node needs to find out what steps of this model take on it.
    """
    kinds = model.footprint.layer_kinds or (0,)
    layers = tuple(kinds.index(kind) for kind in range(max(kinds) + 1))
    of_layers = (stage_tensors(model, layer, layer + 1, embedding=False, head=False) for layer in layers)
    return layers, (*chain.from_iterable(of_layers), *stage_tensors(model, 0, 0, embedding=False, head=True))


def _open_parts(reference: str, progress: Progress | None) -> tuple[ModelParts, str]:
    """Return the parts and the display name of whatever `reference` turns out to be."""
    if reference.startswith(PREFIX):
        return _open_random(reference), reference.partition(",")[0]
    if reference in ALIASES:
        return open_gguf(packaged_file(reference, progress)), reference
    path = _existing_path(reference)
    if path is not None:
        return _open_path(path)
    hub_id = hub.parse_hub_id(reference)
    if hub_id is None or hub.is_plain_path(reference):
        raise ModelNotFoundError(_not_found(reference))
    local = hub.download(*hub_id, progress)
    return (open_hf_folder(local) if local.is_dir() else open_gguf(local)), reference


def _existing_path(reference: str) -> Path | None:
    try:
        path = Path(reference).expanduser().absolute()
        return path if reference and path.exists() else None
    except (OSError, RuntimeError):  # a name too long, a folder closed to us, a home that is not known
        return None


def _open_random(reference: str) -> ModelParts:
    model = open_random(reference)
    tokenizer = Tokenizer(byte_tokenizer(model.spec.vocab_size))
    # Nothing ends an answer: a benchmark gets the number of tokens that it asks for.
    return ModelParts(model.spec, model.tensors, tokenizer, chat_template=None, stated_eos_ids=())


def _open_path(path: Path) -> tuple[ModelParts, str]:
    if path.is_file():
        if path.suffix == ".safetensors":
            raise ModelFormatError(f"{path}: give the folder that holds it, with its config.json")
        return open_gguf(path), path.stem
    if (path / "config.json").is_file():
        return open_hf_folder(path), path.name
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return open_gguf(ggufs[0]), ggufs[0].stem
    found = f"several GGUF files, name one: {', '.join(file.name for file in ggufs)}" if ggufs else "no model"
    raise ModelFormatError(f"{path}: {found} (expected config.json with safetensors, or one GGUF file)")


def _not_found(reference: str) -> str:
    close = get_close_matches(reference, ALIASES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"aliases: {', '.join(ALIASES)}"
    return f"no model {reference!r}: no such file or folder, alias or hub id (org/name); {hint}"


def _limit_context(spec: ModelSpec, max_context: int | None) -> ModelSpec:
    if max_context is None:
        return spec
    if not 1 <= max_context <= spec.max_context:
        raise ConfigError(f"max context {max_context} is not between 1 and the model's {spec.max_context} tokens")
    return msgspec.structs.replace(spec, max_context=max_context)
