"""Opens a GGUF file: figures, weights, tokenizer and chat template all come from its header."""

from __future__ import annotations

from pathlib import Path

from butterfly.errors import ModelFormatError
from butterfly.models.families import family_for_gguf
from butterfly.models.gguf_config import read_hyperparameters
from butterfly.models.gguf_file import read_gguf
from butterfly.models.gguf_tokenizer import build_tokenizer
from butterfly.models.parts import ModelParts, compile_template
from butterfly.models.weights import gguf_names, map_weights


def open_gguf(path: Path) -> ModelParts:
    """Return what the file holds. Raises ModelFormatError or UnsupportedModelError, one line each."""
    file = read_gguf(path)
    architecture = file.text("general.architecture")
    if not architecture:
        raise ModelFormatError(f"{path}: metadata lacks general.architecture")
    family = family_for_gguf(architecture, str(path))
    spec = family.build(read_hyperparameters(file, family))
    tensors = map_weights(file.tensors, gguf_names(family), spec, family, str(path))
    tokenizer = build_tokenizer(file)
    eos_keys = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    return ModelParts(
        spec=spec,
        tensors=tensors,
        tokenizer=tokenizer,
        chat_template=compile_template(file.text("tokenizer.chat_template"), tokenizer, str(path)),
        stated_eos_ids=[file.integer(key) for key in eos_keys if key in file.metadata],
    )
