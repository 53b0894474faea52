"""The application: every route in one place, each a few lines."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from butterfly import __version__
from butterfly.api import problems, shapes
from butterfly.api.building import check_model
from butterfly.api.call_ids import CallIdMiddleware
from butterfly.api.endpoints import CHAT, COMPLETIONS, Service
from butterfly.api.interfaces import ClusterOperator, EngineClient, MetricsSource, ServedModel
from butterfly.api.keys import ApiKeys, KeyMiddleware
from butterfly.api.openapi import GENERATION_PROBLEMS, add_document, described
from butterfly.api.operating import add_cluster_routes, add_operator_routes
from butterfly.api.problems import json_response
from butterfly.api.tokenizing import add_tokenizing_routes


def create_app(
    engine: EngineClient,
    model: ServedModel,
    *,
    metrics: MetricsSource | None = None,
    operator: ClusterOperator | None = None,
    keys: ApiKeys | None = None,
    default_timeout_s: float | None = None,
) -> FastAPI:
    """Return the application that serves `model` through `engine`.

    `metrics` None: no /metrics. `operator` None: the cluster cannot be changed from here. `keys` None: everybody may
    call. `default_timeout_s`: how long a call may take at most, also when it asks for longer; None: as long as it asks
    for, or for ever.
    """
    # The generated documentation pages load scripts from elsewhere; ordinary clusters may have no internet.
    app = FastAPI(title="Butterfly", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    if keys is not None:
        app.add_middleware(KeyMiddleware, keys=keys)
    app.add_middleware(CallIdMiddleware)  # around the one above: a refused key has an id too
    problems.install(app)
    _add_generation_routes(app, Service(engine, model, default_timeout_s))
    _add_model_routes(app, model)
    add_tokenizing_routes(app, model)
    add_operator_routes(app, engine, metrics)
    if operator is not None:
        add_cluster_routes(app, operator)
    add_document(app, model, asks_for_keys=keys is not None)
    return app


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    chat = described(
        "Answer a chat.",
        body=CHAT.body,
        answer=shapes.ChatCompletion,
        stream=shapes.ChatCompletionChunk,
        problems=GENERATION_PROBLEMS,
    )
    completion = described(
        "Complete a prompt.",
        body=COMPLETIONS.body,
        answer=shapes.Completion,
        stream=shapes.Completion,
        problems=GENERATION_PROBLEMS,
    )

    @app.post("/v1/chat/completions", **chat)
    async def chat_completions(request: Request) -> Response:
        return await service.answer(CHAT, request)

    @app.post("/v1/completions", **completion)
    async def completions(request: Request) -> Response:
        return await service.answer(COMPLETIONS, request)


def _add_model_routes(app: FastAPI, model: ServedModel) -> None:
    card = shapes.ModelCard(id=model.id, created=model.created, max_model_len=model.max_context)

    @app.get("/v1/models", **described("List the served model.", answer=shapes.ModelList))
    async def models() -> Response:
        return json_response(shapes.ModelList(data=[card]))

    # A path, as ids such as org/name have slashes.
    @app.get("/v1/models/{model_id:path}", **described("Describe a model.", answer=shapes.ModelCard, problems=(404,)))
    async def one_model(model_id: str) -> Response:
        check_model(model, model_id)
        return json_response(card)
