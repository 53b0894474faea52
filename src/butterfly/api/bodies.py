"""The request bodies of /v1/chat/completions and /v1/completions, checked.

Rules: a wrong type is an error that names its field; null is the default; a field that would change the
output and is not honoured is an error too (see `refusals`); other unknown fields are ignored, as clients
send many. /openapi.json publishes these very models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, field_validator

from butterfly.api.chat_messages import ChatMessage, check_messages, check_template_variables
from butterfly.api.checked import Body, Checked, wrong
from butterfly.api.grammars import GrammarFields
from butterfly.api.problems import UnsupportedFieldError
from butterfly.api.refusals import CHAT_NEUTRAL, COMPLETION_NEUTRAL, refuse_unsupported
from butterfly.api.tool_bodies import MAX_TOOLS, Tool, ToolChoiceField, check_tools
from butterfly.errors import InvalidRequestError

MAX_CHOICES = 128  # answers of one call: prompts times n
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKENS = 256
MAX_BIASES = 1024  # they travel with every step of their request
MAX_LOGPROBS = 20  # likeliest tokens per position
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
_MAX_ID_DIGITS = 10

# What clients may send, for /openapi.json; validators bring it to one form.
_StopSent = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_StopsSent = _StopSent | Annotated[list[_StopSent], Field(max_length=MAX_STOPS)] | None
_Id = Annotated[str, Field(pattern=rf"^[0-9]{{1,{_MAX_ID_DIGITS}}}$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_BiasesSent = Annotated[dict[_Id, _Bias], Field(max_length=MAX_BIASES)] | None
_Texts = Annotated[list[str], Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_PromptSent = str | _Texts | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _prompts_of(value: object) -> object:
    """Bring the four forms of `prompt` to one: a list of texts or a list of lists of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong("must be a text, a list of texts, token ids or a list of lists of token ids")
    if not value:
        raise wrong("must not be empty")
    if _are_token_ids(value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and _are_token_ids(item) for item in value):
        return value
    raise wrong("must be a text, a list of texts, token ids or a list of lists of token ids, and not a mix of them")


def _are_token_ids(items: list[object]) -> bool:
    return all(type(item) is int for item in items)


def _biases_of(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise wrong(f"at most {MAX_BIASES} biases")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS):
            raise wrong('its keys must be token ids in decimal, such as "123"')
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise wrong("a bias must be a number from -100 to 100")
    return {int(key): bias for key, bias in value.items()}


class StreamOptions(Checked):
    include_usage: bool | None = False
    continuous_usage_stats: Annotated[
        bool | None, Field(description="vLLM's, with include_usage: every chunk has the usage so far.")
    ] = False


class GenerationBody(GrammarFields, Body):
    """What both endpoints share. null means the default everywhere, as in OpenAI's API."""

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    model: str
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    best_of: Annotated[int | None, Field(ge=1, description="Only the same as n.")] = None

    max_tokens: Annotated[int | None, Field(ge=1)] = None
    min_tokens: Annotated[int | None, Field(ge=0)] = None
    stop: Annotated[list[str] | None, BeforeValidator(_one_or_many, json_schema_input_type=_StopsSent)] = None
    stop_token_ids: Annotated[list[int] | None, Field(max_length=MAX_STOP_TOKENS)] = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: Annotated[
        bool | None, Field(description="Not with a grammar: where it is complete nothing but the end is left.")
    ] = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None

    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None  # -1 and 0: all
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**64)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    logit_bias: Annotated[
        dict[int, float] | None,
        BeforeValidator(_biases_of, json_schema_input_type=_BiasesSent),
        Field(description="Token ids (in decimal) and what is added to their logits."),
    ] = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # accepted, unused
    priority: Annotated[int | None, Field(ge=-(2**31), lt=2**31, description="Smaller numbers first.")] = None
    timeout: Annotated[float | None, Field(gt=0, description="Seconds until the call fails with 504.")] = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stops: list[str] | None) -> list[str] | None:
        if stops is None:
            return None
        if len(stops) > MAX_STOPS:
            raise wrong(f"at most {MAX_STOPS} stop strings")
        if any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in stops):
            raise wrong(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
        return stops

    def check(self) -> None:
        """Raises InvalidRequestError for fields that are right by themselves but not together."""
        refuse_unsupported(self.model_extra or {}, self.unsupported)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed with stream", "stream_options")
        if self.best_of is not None and self.best_of != self.num_choices:
            raise UnsupportedFieldError("best_of is not supported, unless it is the same as n", "best_of")

    @property
    def num_choices(self) -> int:
        return self.n or 1


class ChatBody(GenerationBody):
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = CHAT_NEUTRAL

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None  # the newer name, wins over the older
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Annotated[
        bool | None, Field(description="vLLM's: the output goes on with the last message instead of a new one.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, JsonValue] | None, Field(description="More variables for the chat template.")
    ] = None

    def check(self) -> None:
        super().check()
        check_messages(self.messages)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs is only allowed with logprobs", "top_logprobs")
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "continue_final_message cannot be combined with add_generation_prompt", "continue_final_message"
            )
        check_tools(self.tools or [], self.tool_choice)
        check_template_variables(self.chat_template_kwargs or {})

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told at each position; None: no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(GenerationBody):
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = COMPLETION_NEUTRAL

    prompt: Annotated[
        list[str] | list[list[int]],
        BeforeValidator(_prompts_of, json_schema_input_type=_PromptSent),
    ]
    max_tokens: Annotated[int | None, Field(ge=0, description="0 only with echo.")] = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    echo: bool | None = None

    def check(self) -> None:
        super().check()
        if len(self.prompt) * self.num_choices > MAX_CHOICES:
            raise InvalidRequestError(
                f"{len(self.prompt)} prompts times n={self.num_choices} are more than {MAX_CHOICES} choices", "n"
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens: must be at least 1, unless echo is set", "max_tokens")

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


AnyBody = ChatBody | CompletionBody
BodyT = TypeVar("BodyT", ChatBody, CompletionBody)
ParsedT = TypeVar("ParsedT", bound=Body)


def parse_body(kind: type[ParsedT], raw: bytes) -> ParsedT:
    """Return the checked body. Raises InvalidRequestError naming the field.

    Read from the bytes, whatever Content-Type says: a curl without the header should work, and the
    parser bounds nesting, refuses NaN and lone surrogates, and never keeps a value in its message.
    """
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _first_problem(error) from None  # the cause holds the client's text
    body.check()
    return body


def _first_problem(error: ValidationError) -> InvalidRequestError:
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if detail["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not JSON: {detail['msg'].removeprefix('Invalid JSON: ')}")
    param = _path(detail["loc"])
    if not param:
        return InvalidRequestError("the body must be a JSON object")
    if detail["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param)
    return InvalidRequestError(f"{param}: {detail['msg'][0].lower()}{detail['msg'][1:]}", param)


def _path(location: tuple[int | str, ...]) -> str:
    """Return ('messages', 0, 'role') as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
