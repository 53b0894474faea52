"""From a MODEL string to everything the others need to know of a model, without reading weights.

Promises
    `open_model(reference)` takes a GGUF file, a Hugging Face folder, an alias, a hub id or
    `random:FAMILY,...` and returns a `Model`: its `ModelSpec` (the decoder as data), where each tensor's
    bytes are (`TensorEntry` by canonical name, every name, shape and byte range checked against the
    files), its `ModelFootprint`, tokenizer, chat template and end tokens. `stage_tensors` says what one
    stage loads, and `TensorShelf` gives its bytes to those who have no file. What cannot be run is refused in one
    line: ModelNotFoundError, ModelFormatError, UnsupportedModelError or ConfigError. Headers only: opening costs
    seconds and no weight memory.

Must not know
    torch, devices, processes, requests, HTTP. How tensors become kernels is the engine's; the two share
    `footprint.resident_bytes`, the table of what each storage becomes in memory.

A one-hour change
    A family: one file in `families/` (a spec builder and a weight-name map) and one row in
    tests/unit/models/test_families.py. An alias: one row in `packages.ALIASES`. A GGUF pre-tokenizer:
    one row in `gguf_tokenizer.PRE_TOKENIZERS`.
"""

from butterfly.models.chat_template import ChatTemplate
from butterfly.models.footprint import resident_bytes
from butterfly.models.model import Model, limit_context, open_model, profile_tensors, stage_tensors, with_weights
from butterfly.models.tensor_shelf import TensorShelf
from butterfly.models.tokenizer import Tokenizer, TokenStream

__all__ = [
    "ChatTemplate",
    "Model",
    "TensorShelf",
    "Tokenizer",
    "TokenStream",
    "limit_context",
    "open_model",
    "profile_tensors",
    "resident_bytes",
    "stage_tensors",
    "with_weights",
]
