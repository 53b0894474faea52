"""The API: OpenAI's HTTP interface on one side, requests and outputs on the other.

Promises
    A call is checked completely before the engine hears of it, and refused with an OpenAI error body that
    names the field. Errors that the engine raises on submission become statuses, later ones events of the
    stream; a client never sees a traceback. No half character and no part of a stop string goes out, and
    logprobs go out with the text of their tokens. Every request that was submitted and has not ended is
    aborted when its client leaves, when a sibling fails, when a stop string is met. Bodies are never logged.
    /openapi.json publishes the models that check bodies and encode answers, so it cannot lie.
Must not know
    Anything of Butterfly but the border nouns. What it needs of others it declares in `interfaces`:
    `EngineClient`, `Tokenizer`, `ChatTemplate`, `MetricsSource`. Grammars are only named here
    (`GrammarSpec`): whoever is behind `EngineClient.submit` compiles them.
The life of a call
    `app` route -> `endpoints.Service` -> `bodies.parse_body` (with `chat_messages`, `tool_bodies`,
    `grammars`, `refusals`) -> `building` (with `prompts`: a `Job`) -> `generation.Generation` (submits,
    merges, owns) with one `choices.Choice` per answer (text, stop strings, whose logprobs may go out) ->
    `answering` (whole or events) in what `chat_format` or `completion_format` makes of them (with
    `token_texts`, `tool_calls`), as `shapes`; every error through `problems`.
The typical one-hour change, a new field of the request
    One line in `bodies.GenerationBody` (and out of the table in `refusals`), one line in
    `building._sampling` or `building._common_request`, one row each in `tests/unit/api/test_bodies.py` and
    `test_building.py`. A new field of the answer is one line in `shapes` and one in a format.
"""

from butterfly.api.app import create_app
from butterfly.api.building import choice_seed
from butterfly.api.choices import Choice, ChoiceEvent, ShownToken, StopFilter
from butterfly.api.interfaces import (
    ChatTemplate,
    EngineClient,
    MetricsSource,
    ServedModel,
    Tokenizer,
    TokenStream,
)
from butterfly.api.keys import ApiKeys, load_keys
from butterfly.api.server import ApiServer, BoundPort
from butterfly.api.tls import TlsFiles

__all__ = [
    "ApiKeys",
    "ApiServer",
    "BoundPort",
    "ChatTemplate",
    "Choice",
    "ChoiceEvent",
    "EngineClient",
    "MetricsSource",
    "ServedModel",
    "ShownToken",
    "StopFilter",
    "TlsFiles",
    "TokenStream",
    "Tokenizer",
    "choice_seed",
    "create_app",
    "load_keys",
]
