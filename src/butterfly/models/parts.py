"""What each opener (GGUF file, Hugging Face folder, random) hands to `open_model`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from butterfly.errors import ModelFormatError
from butterfly.models.chat_template import ChatTemplate
from butterfly.models.tokenizer import Tokenizer
from butterfly.specs import ModelSpec, TensorEntry

logger = logging.getLogger(__name__)

END_OF_TURN_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "</s>")
CHATML_END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"


@dataclass(frozen=True)
class ModelParts:
    """A model before footprint, context limit and end tokens are settled."""

    spec: ModelSpec
    tensors: Mapping[str, TensorEntry]
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    stated_eos_ids: Iterable[int]  # what the files name as end of sequence


def compile_template(source: str | None, tokenizer: Tokenizer, where: str) -> ChatTemplate | None:
    """Return the compiled template; a broken one costs chat, with a warning, not the whole model."""
    if not source:
        return None
    try:
        return ChatTemplate(
            source,
            bos_token=_token_text(tokenizer, tokenizer.bos_token_id),
            eos_token=_token_text(tokenizer, tokenizer.eos_token_id),
        )
    except ModelFormatError as error:
        logger.warning("%s: %s; going on without it", where, error)
        return None


def _token_text(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.decode([token_id], skip_special_tokens=False)


def end_token_ids(tokenizer: Tokenizer, stated: Iterable[int]) -> tuple[int, ...]:
    """Return every id that ends an answer: the stated ones, and the end-of-turn tokens of known chat
    formats that exist as special tokens (base models' files often leave theirs out)."""
    ids = [*stated, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    known = {name: tokenizer.token_to_id(name) for name in (*END_OF_TURN_TOKENS, END_OF_TEXT)}
    if known[CHATML_END_OF_TURN] not in tokenizer.special_ids:
        known.pop(END_OF_TEXT)
    ids += [token_id for token_id in known.values() if token_id is not None and token_id in tokenizer.special_ids]
    return tuple(sorted(set(ids)))
