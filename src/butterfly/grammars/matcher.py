"""One output's way through its grammar."""

from __future__ import annotations

from llguidance import LLMatcher

from butterfly.errors import RequestFailedError
from butterfly.grammars.translation import one_line
from butterfly.grammars.vocabulary import TokenTable
from butterfly.specs import GrammarSpec


class Matcher:
    """Says which tokens may come next, and takes in the one that did. For one thread at a time."""

    def __init__(self, library: LLMatcher, table: TokenTable, grammar: GrammarSpec) -> None:
        self._library, self._table, self._grammar = library, table, grammar
        self._bits = b""  # the library's mask of the next token, once it is known
        self._mask = b""  # the same as others see it
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        """Whether an end token was accepted."""
        return self._is_finished

    def mask(self) -> bytes:
        """Return the tokens that may come next, as `specs.SamplingContext.mask` wants them.

        Where nothing but the end may follow, and after it, these are the end tokens. Raises RequestFailedError when no
        token can continue the output, or when working out which do takes too much.
        """
        if not self._mask:
            self._mask = self._table.end_mask if self._is_finished else self._table.deflated(self._next_bits())
        return self._mask

    def accept(self, token_id: int) -> None:
        """Take in the next token of the output; an end token ends it.

        Raises RequestFailedError for a token that the mask forbids (a bug, or a stage that does not do as it is told;
        nothing has changed then), and when what follows takes too much to work out.
        """
        is_end = token_id in self._table.eos_token_ids
        if self._is_finished and is_end:
            return  # the end stays the only thing that may follow
        library_id = self._table.first_twin(token_id)
        if self._is_finished or not self._table.holds(self._next_bits(), library_id):
            raise self._failed(f"forbids token {token_id}, which was sampled all the same")
        self._bits = self._mask = b""
        if not self._library.consume_token(library_id):
            raise self._lost()
        self._is_finished = is_end

    def _next_bits(self) -> bytes:
        if not self._bits:
            bits = self._library.compute_bitmask()
            if self._library.is_error():
                raise self._lost()
            self._bits = bits
        return self._bits

    def _lost(self) -> RequestFailedError:
        reason = one_line(self._library.get_error(), self._grammar.kind)
        return self._failed(f"cannot be followed any further: {reason}")

    def _failed(self, problem: str) -> RequestFailedError:
        return RequestFailedError(f"{self._grammar.param}: the grammar {problem}")
