"""What an output must match, as masks over the next token.

Promises
    `GrammarCompiler.compile(GrammarSpec)` gives a `Matcher`, or refuses in one line that names the request's field:
    a grammar that is wrong, too large, or asks for something that cannot be enforced (nothing is ignored silently).
    `Matcher.mask()` is what `specs.SamplingContext.mask` wants: the tokens that the grammar lets follow, and the end
    tokens where the output matches as it is. `Matcher.accept(token)` goes on. An output that ends with an end token
    matches the grammar.
    No text of a client makes the process fail, hang or take memory without bound: size, depth and work are limited.
    JSON is written with bounded white space (see `translation.WHITESPACE`), because small models write new lines for
    ever where a grammar lets them.

Known limits
    What nothing can match is refused at once if it comes first, and ends the output with an error if it comes later.
    A regex is the library's: a match of the whole output, without look-around, Unicode but for digits (0 to 9).
    An end token that a Lark grammar names among its special tokens ends the output there.
    JSON objects have the keys of `properties` in the order of the schema; further keys are not kept from repeating.
    A token's bytes count as they are. A tokenizer that drops one space in front of a text drops it here too: what a
    client sees may lack a space that the grammar asked for as its very first character.
    Several ways to cut a fixed text into tokens stay open: which one to take is the model's choice.

Must not know
    Models, requests, steps, torch, sockets. The library (llguidance) is known here and nowhere else.

Threads
    `GrammarCompiler` may be used from any thread; a `Matcher` by one thread at a time. Both leave the interpreter to
    others while the library works, but for `prepare`.

A one-hour change, another kind of grammar
    One row in `specs.GrammarKind`, one function in `translation._TRANSLATORS` that says it in the library's dialect of
    Lark, one row in tests/property/test_grammars.py.
"""

from butterfly.grammars.compiler import GrammarCompiler
from butterfly.grammars.matcher import Matcher
from butterfly.grammars.vocabulary import Vocabulary

__all__ = ["GrammarCompiler", "Matcher", "Vocabulary"]
