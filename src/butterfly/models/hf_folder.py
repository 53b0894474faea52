"""Opens a Hugging Face model folder: config.json, safetensors, tokenizer.json and their companions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from butterfly.errors import ModelFormatError
from butterfly.models.chat_template import ChatTemplate, pick_template
from butterfly.models.hf_config import find_family, read_hyperparameters
from butterfly.models.json_file import read_json_object, read_optional_json_object
from butterfly.models.parts import ModelParts, compile_template
from butterfly.models.safetensors_file import read_safetensors_folder
from butterfly.models.tokenizer import Tokenizer
from butterfly.models.weights import HF_EMBEDDING, hf_names, map_weights, plain_hf_name


def open_hf_folder(folder: Path) -> ModelParts:
    """Return what the folder holds. Raises ModelFormatError or UnsupportedModelError, one line each."""
    config = read_json_object(folder / "config.json")
    family = find_family(config, folder)
    stored = {plain_hf_name(name): tensor for name, tensor in read_safetensors_folder(folder).items()}
    embedding = stored.get(HF_EMBEDDING)
    if embedding is None:
        raise ModelFormatError(f"{folder}: tensor {HF_EMBEDDING} is missing")
    spec = family.build(read_hyperparameters(config, family, folder, embedding.shape[0]))
    tensors = map_weights(stored, hf_names(family), spec, family, str(folder))
    tokenizer_config = read_optional_json_object(folder / "tokenizer_config.json")
    tokenizer = _tokenizer(folder, config, tokenizer_config)
    return ModelParts(
        spec=spec,
        tensors=tensors,
        tokenizer=tokenizer,
        chat_template=_chat_template(folder, tokenizer_config, tokenizer),
        stated_eos_ids=_stated_eos_ids(folder, config),
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _tokenizer(folder: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFormatError(f"{folder}: tokenizer.json is missing (the only tokenizer format that is read)")
    try:
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:
        raise ModelFormatError(f"{path}: not a tokenizer: {error}") from error
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    backend.no_truncation()
    backend.no_padding()
    ids: dict[str, int | None] = {}
    for role in ("bos", "eos"):
        token = tokenizer_config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        stated = _text_config(config).get(f"{role}_token_id")
        token_id = backend.token_to_id(token) if isinstance(token, str) else None
        ids[role] = token_id if token_id is not None else stated if isinstance(stated, int) else None
    return Tokenizer(backend, bos_token_id=ids["bos"], eos_token_id=ids["eos"])


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """A file of its own wins over tokenizer_config.json, as in transformers."""
    own = folder / "chat_template.jinja"
    try:
        if own.is_file():
            source: str | None = own.read_text(encoding="utf-8")
        else:
            stated = read_optional_json_object(folder / "chat_template.json").get("chat_template")
            source = pick_template(stated or tokenizer_config.get("chat_template"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{own}: cannot be read: {error}") from error
    return compile_template(source, tokenizer, str(folder))


def _stated_eos_ids(folder: Path, config: Mapping[str, Any]) -> list[int]:
    generation = read_optional_json_object(folder / "generation_config.json")
    ids: list[int] = []
    for source in (generation, config, _text_config(config)):
        stated = source.get("eos_token_id")
        ids += [item for item in (stated if isinstance(stated, list) else [stated]) if isinstance(item, int)]
    return ids
