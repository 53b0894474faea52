"""The routes. Each is a few lines: parse, build, start, answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from butterfly import __version__
from butterfly.api import problems
from butterfly.api.answering import Envelope, StreamedAnswer, unless_disconnected, whole_answer
from butterfly.api.bodies import BodyT, ChatBody, CompletionBody, parse_body
from butterfly.api.building import Job, chat_job, check_model, completion_job
from butterfly.api.call_ids import CallIdMiddleware
from butterfly.api.formats import ChatFormat, CompletionFormat, Format, Json
from butterfly.api.generation import Generation
from butterfly.api.interfaces import EngineClient, MetricsSource, ServedModel
from butterfly.api.problems import json_response

MAX_BODY_BYTES = 16 * 1024 * 1024  # some four million tokens of text, more than any context

_JobBuilder = Callable[[ServedModel, BodyT, str], Awaitable[Job]]


def create_app(engine: EngineClient, model: ServedModel, *, metrics: MetricsSource | None = None) -> FastAPI:
    """Return the application that serves `model` through `engine`. `metrics` None: no /metrics."""
    # The generated documentation pages load scripts from elsewhere; ordinary clusters may have no internet.
    app = FastAPI(title="Butterfly", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CallIdMiddleware)
    problems.install(app)
    _add_generation_routes(app, engine, model)
    _add_model_routes(app, model)
    _add_operator_routes(app, engine, metrics)
    return app


def _add_generation_routes(app: FastAPI, engine: EngineClient, model: ServedModel) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = parse_body(ChatBody, await _read_body(request))
        return await _answer(request, body, chat_job, ChatFormat())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = parse_body(CompletionBody, await _read_body(request))
        return await _answer(request, body, completion_job, CompletionFormat())

    async def _answer(request: Request, body: BodyT, build_job: _JobBuilder[BodyT], format: Format) -> Response:
        answer = _generate(request, body, build_job, format)
        # A client that has left reads nothing: any response will do.
        return await unless_disconnected(request.receive, answer) or Response(status_code=problems.CLIENT_LEFT)

    async def _generate(request: Request, body: BodyT, build_job: _JobBuilder[BodyT], format: Format) -> Response:
        envelope = Envelope.new(format, model.id)
        generation = Generation(engine, model.tokenizer, await build_job(model, body, envelope.id))
        is_handed_over = False
        try:
            await generation.start()
            if not body.stream:
                return await whole_answer(generation, envelope)
            call_id = request.scope["butterfly.call_id"]
            answer = StreamedAnswer(generation, envelope, call_id, with_usage=body.includes_usage)
            is_handed_over = True
            return answer
        finally:
            if not is_handed_over:
                await generation.close()


def _add_model_routes(app: FastAPI, model: ServedModel) -> None:
    card: Json = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "butterfly",
        "max_model_len": model.max_context,  # not OpenAI's, but clients of other servers look for it
    }

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [card]})

    @app.get("/v1/models/{model_id:path}")  # a path, as ids such as org/name have slashes
    async def one_model(model_id: str) -> Response:
        check_model(model, model_id)
        return json_response(card)


def _add_operator_routes(app: FastAPI, engine: EngineClient, metrics: MetricsSource | None) -> None:
    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        status = engine.status()
        is_ready = status.phase == "ready"
        content = {"ready": is_ready, "phase": status.phase, "detail": status.detail}
        return json_response(content, 200 if is_ready else 503)

    @app.get("/status")
    async def cluster_status() -> Response:
        return json_response(engine.status())

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})

    if metrics is not None:

        @app.get("/metrics")
        async def prometheus() -> Response:
            return Response(metrics.render(), headers={"content-type": metrics.content_type})


async def _read_body(request: Request) -> bytes:
    """Return the body. Raises HTTPException 413 without reading on, so that memory stays bounded."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)
