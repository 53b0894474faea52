"""/openapi.json: every route, with the very models that check requests and encode answers.

Bodies are read by hand (see `bodies.parse_body`), so FastAPI cannot know them: a route says what it takes
and gives with `described`, and `add_document` puts the schemas behind the names.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from butterfly.api import shapes
from butterfly.api.bodies import ChatBody, CompletionBody
from butterfly.api.interfaces import ServedModel
from butterfly.api.operator_bodies import DrainBody
from butterfly.api.problems import json_response
from butterfly.api.token_bodies import DetokenizeAnswer, DetokenizeBody, TokenizeAnswer, TokenizeBody, TokenizerInfo
from butterfly.specs import ClusterStatus

_REFERENCE = "#/components/schemas/{}"
_BODIES: tuple[type[BaseModel], ...] = (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, DrainBody)
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    shapes.ChatCompletion,
    shapes.ChatCompletionChunk,
    shapes.Completion,
    shapes.Drained,
    shapes.ErrorBody,
    shapes.Health,
    shapes.ModelCard,
    shapes.ModelList,
    shapes.Readiness,
    shapes.Version,
    ClusterStatus,
    TokenizeAnswer,
    DetokenizeAnswer,
    TokenizerInfo,
)

_PROBLEMS = {
    400: "A field is wrong (`param` names it), or prompt and output do not fit the context.",
    401: "The API key is missing or unknown.",
    403: "This caller may not change the cluster.",
    404: "There is no such model.",
    409: "The others cannot hold what this worker holds.",
    413: "The body is too large.",
    500: "The request failed, or the server has a bug.",
    503: "The model is not loaded, or the queue is full: see the header Retry-After.",
    504: "The request's own deadline has passed.",
}
GENERATION_PROBLEMS = (400, 404, 413, 500, 503, 504)


def described(
    summary: str,
    *,
    answer: type[msgspec.Struct],
    body: type[BaseModel] | None = None,
    stream: type[msgspec.Struct] | None = None,
    statuses: tuple[int, ...] = (200,),
    problems: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return the arguments of a route's decorator that describe it.

    `stream`: what each event of the answer is when the body asks for a stream. `statuses`: those that the
    answer may have. `problems`: statuses of errors; 401 is added to all routes where keys are asked for.
    """
    content: dict[str, Any] = {"application/json": {"schema": _reference(answer)}}
    description = "The answer."
    if stream is not None:
        content["text/event-stream"] = {"schema": _event_of(stream)}
        description = f"The answer; with `stream`, events of type {stream.__name__} (or an error), then `[DONE]`."
    responses: dict[int, Any] = {status: {"description": description, "content": content} for status in statuses}
    responses |= {status: _problem(status) for status in problems}
    arguments: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        taken = {"required": True, "content": {"application/json": {"schema": _reference(body)}}}
        arguments["openapi_extra"] = {"requestBody": taken}
    return arguments


def add_document(app: FastAPI, model: ServedModel, *, asks_for_keys: bool) -> None:
    """Add /openapi.json for the routes that `app` has when it is first asked for."""

    @cache
    def document() -> dict[str, Any]:
        return _document(app, model, asks_for_keys=asks_for_keys)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return json_response(document())


def _document(app: FastAPI, model: ServedModel, *, asks_for_keys: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(body, "validation") for body in _BODIES]
    _, bodies = models_json_schema(wanted, ref_template=_REFERENCE.format("{model}"))
    _, answers = msgspec.json.schema_components(_ANSWERS, ref_template=_REFERENCE.format("{name}"))
    schemas.update(bodies["$defs"])
    schemas.update(answers)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    _name_models(operations, [schemas[body.__name__] for body in _BODIES], [model.id, *model.aliases])
    for operation in operations:
        operation["responses"].pop("422", None)  # FastAPI's own, which problems never let happen
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if asks_for_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for operation in operations:
            operation["responses"]["401"] = _problem(401)
    return document


def _name_models(operations: list[dict[str, Any]], bodies: list[dict[str, Any]], names: list[str]) -> None:
    """Say which models there are, wherever one is asked for."""
    fields = [body["properties"]["model"] for body in bodies if "model" in body["properties"]]
    parameters = [parameter for operation in operations for parameter in operation.get("parameters", ())]
    fields += [parameter["schema"] for parameter in parameters if parameter["name"] == "model_id"]
    for field in fields:
        for kind in field.get("anyOf", [field]):
            if kind["type"] == "string":
                kind["enum"] = names


def _event_of(stream: type) -> dict[str, Any]:
    """Return the schema of one event: its data is JSON in a string, but for the last one's."""
    chunk = {"anyOf": [_reference(stream), _reference(shapes.ErrorBody)]}
    data = {"anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": chunk}]}
    return {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", **data}}}


def _problem(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(shapes.ErrorBody)}}
    return {"description": _PROBLEMS[status], "content": content}


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(kind.__name__)}
