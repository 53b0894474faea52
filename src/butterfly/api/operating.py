"""What operators ask: is it alive, is it ready, who holds what; and that a worker is to leave."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from butterfly import __version__
from butterfly.api import shapes
from butterfly.api.bodies import parse_body
from butterfly.api.endpoints import read_body
from butterfly.api.interfaces import ClusterOperator, EngineClient, MetricsSource
from butterfly.api.openapi import described
from butterfly.api.operator_bodies import DrainBody
from butterfly.api.problems import NotAllowedError, json_response
from butterfly.specs import ClusterStatus

OPERATOR = "admin"
"""The label of the API key that may change the cluster. Without keys, whoever is on this machine may."""

_LOOPBACK = ("127.0.0.1", "::1")


def add_operator_routes(app: FastAPI, engine: EngineClient, metrics: MetricsSource | None) -> None:
    @app.get("/health", **described("Tell whether the process answers.", answer=shapes.Health))
    async def health() -> Response:
        return json_response(shapes.Health())

    readiness = described("Tell whether the model is loaded.", answer=shapes.Readiness, statuses=(200, 503))

    @app.get("/ready", **readiness)
    async def ready() -> Response:
        status = engine.status()
        is_ready = status.phase == "ready"
        content = shapes.Readiness(ready=is_ready, phase=status.phase, detail=status.detail)
        return json_response(content, 200 if is_ready else 503)

    @app.get("/status", **described("Describe the cluster.", answer=ClusterStatus))
    async def cluster_status() -> Response:
        return json_response(engine.status())

    @app.get("/version", **described("Tell the version.", answer=shapes.Version))
    async def version() -> Response:
        return json_response(shapes.Version(version=__version__))

    if metrics is not None:
        content = {metrics.content_type: {"schema": {"type": "string"}}}

        @app.get(
            "/metrics", response_class=Response, responses={200: {"description": "For Prometheus.", "content": content}}
        )
        async def prometheus() -> Response:
            return Response(metrics.render(), headers={"content-type": metrics.content_type})


def add_cluster_routes(app: FastAPI, operator: ClusterOperator) -> None:
    """What changes the cluster."""
    drain = described(
        "Let a worker leave: its layers move to others first.",
        body=DrainBody,
        answer=shapes.Drained,
        statuses=(202,),
        problems=(400, 403, 409),
    )

    @app.post("/cluster/drain", **drain)
    async def drain_worker(request: Request) -> Response:
        check_operator(request)
        body = parse_body(DrainBody, await read_body(request))
        await operator.drain(body.worker)
        return json_response(shapes.Drained(worker=body.worker), 202)


def check_operator(request: Request) -> None:
    """Raises NotAllowedError for callers who may not change the cluster."""
    tenant = request.scope.get("butterfly.tenant")
    if tenant is not None and tenant != OPERATOR:
        raise NotAllowedError(
            f"only the API key with the label {OPERATOR} may change the cluster, not that of {tenant}"
        )
    if tenant is None and (request.client is None or request.client.host not in _LOOPBACK):
        raise NotAllowedError(
            f"without API keys, the cluster is changed from the server's own machine; or give a key "
            f"the label {OPERATOR}"
        )
    # A web page that somebody on this machine looks at can post a form here, but not JSON.
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise NotAllowedError("the body must be JSON, with the header 'Content-Type: application/json'")
