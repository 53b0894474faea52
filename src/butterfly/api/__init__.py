"""The API: OpenAI's HTTP interface on one side, requests and outputs on the other.

Promises
    A call is checked completely before the engine hears of it, and refused with an OpenAI error body that
    names the field. Errors that the engine raises on submission become statuses, later ones events of the
    stream; a client never sees a traceback. No half character and no part of a stop string goes out. Every
    request that was submitted and has not ended is aborted when its client leaves, when a sibling fails,
    when a stop string is met. Bodies are never logged.
Must not know
    Anything of Butterfly but the border nouns. What it needs of others it declares in `interfaces`:
    `EngineClient`, `Tokenizer`, `ChatTemplate`, `MetricsSource`.
The life of a call
    `app` route -> `bodies.parse_body` -> `building` (template, tokens, limits, seeds: a `Job`) ->
    `generation.Generation` (submits, merges, owns) with one `choices.Choice` per answer (text, stop
    strings) -> `answering` (JSON or events) in the shapes of `formats`; every error through `problems`.
The typical one-hour change, a new field of the request
    One line in `bodies.GenerationBody` (and out of its table of unsupported fields), one line in
    `building._sampling`, one row in `tests/unit/api/test_bodies.py`.
"""

from butterfly.api.app import create_app
from butterfly.api.building import choice_seed
from butterfly.api.interfaces import (
    ChatTemplate,
    EngineClient,
    MetricsSource,
    ServedModel,
    Tokenizer,
    TokenStream,
)
from butterfly.api.server import ApiServer, BoundPort

__all__ = [
    "ApiServer",
    "BoundPort",
    "ChatTemplate",
    "EngineClient",
    "MetricsSource",
    "ServedModel",
    "TokenStream",
    "Tokenizer",
    "choice_seed",
    "create_app",
]
