"""From a grammar to a matcher, and a memory of the last few grammars."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits

from butterfly.errors import InvalidRequestError
from butterfly.grammars.deep_stack import call_on_deep_stack
from butterfly.grammars.matcher import Matcher
from butterfly.grammars.translation import library_grammar, one_line, unusable
from butterfly.grammars.vocabulary import TokenTable, Vocabulary
from butterfly.specs import GrammarSpec

# A schema of sixty tools with ten arguments each needs half of each. With these limits the worst grammar known to us
# takes a second for one mask, once; with the library's own, many.
_LIMITS = LLParserLimits(
    max_grammar_size=10_000,
    max_items_in_row=1000,
    step_max_items=10_000,
    max_lexer_states=50_000,  # of all matchers of one compiled grammar; about 1 kB each
    verbose_errors=False,
)
_MAX_REMEMBERED = 16


class GrammarCompiler:
    """Compiles grammars for one tokenizer and one model, from any thread.

    `vocab_size` is the model's: the masks have one bit for each of its tokens. `eos_token_ids` end an output.
    """

    def __init__(self, tokenizer: Vocabulary, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        self._tokenizer, self._eos_token_ids, self._vocab_size = tokenizer, tuple(eos_token_ids), vocab_size
        self._preparing = threading.Lock()
        self._table: TokenTable | None = None
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()  # by kind and text, oldest use first

    def prepare(self) -> None:
        """Do what the first `compile` would do first.

        Takes 0.2 seconds for 49,152 tokens and 2 for 262,144, and other threads stand still for most of it.
        """
        self._prepared_table()

    def compile(self, grammar: GrammarSpec) -> Matcher:
        """Return a fresh matcher. Raises InvalidRequestError, with `grammar.param`, for what cannot be enforced.

        Takes about a millisecond for a usual schema, some tenths of a second for a huge one, and next to nothing for
        one of the last few.
        """
        if not any(0 <= token < min(self._tokenizer.vocab_size, self._vocab_size) for token in self._eos_token_ids):
            raise InvalidRequestError(
                f"{grammar.param}: this model names no end token, so an output cannot be bound to a grammar",
                grammar.param,
            )
        library = self._copy_of_known(grammar) or self._compiled_anew(grammar)
        return Matcher(library, self._prepared_table(), grammar)

    def _prepared_table(self) -> TokenTable:
        with self._preparing:
            if self._table is None:
                self._table = TokenTable(self._tokenizer, self._eos_token_ids, self._vocab_size)
            return self._table

    def _copy_of_known(self, grammar: GrammarSpec) -> LLMatcher | None:
        key = (grammar.kind, grammar.text)
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is None:
                return None
            self._compiled.move_to_end(key)
            copy = compiled.deep_copy()
        copy.compute_bitmask()
        # Copies share the states of their lexer. Where those so far have used them up, the next one gets new ones.
        return None if copy.is_error() else copy

    def _compiled_anew(self, grammar: GrammarSpec) -> LLMatcher:
        text = library_grammar(grammar)
        table = self._prepared_table()
        compiled, copy = call_on_deep_stack(lambda: _compile(text, table))
        if copy.is_error():
            raise unusable(grammar, one_line(copy.get_error(), grammar.kind))
        with self._lock:
            self._compiled[(grammar.kind, grammar.text)] = compiled
            self._compiled.move_to_end((grammar.kind, grammar.text))
            while len(self._compiled) > _MAX_REMEMBERED:
                self._compiled.popitem(last=False)
        return copy


def _compile(text: str, table: TokenTable) -> tuple[LLMatcher, LLMatcher]:
    """Return a compiled grammar and a copy of it that has made its first mask.

    A grammar that nothing can match, or that is too complex to follow, shows with its first mask.
    """
    compiled = LLMatcher(table.library, text, log_level=0, limits=_LIMITS)
    copy = compiled.deep_copy()
    if not copy.is_error():
        copy.compute_bitmask()
    return compiled, copy
