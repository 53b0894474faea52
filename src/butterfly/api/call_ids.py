"""One id per HTTP call: taken from X-Request-Id when the client sends a sane one, echoed always."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # it goes into logs and headers


class CallIdMiddleware:
    """Puts the id into `scope["butterfly.call_id"]` and into the response.

    Plain ASGI, because Starlette's BaseHTTPMiddleware hides a client's disconnect from the routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked_for = Headers(scope=scope).get("x-request-id", "")
        call_id = asked_for if _SANE.fullmatch(asked_for) else f"req-{uuid.uuid4().hex}"
        scope["butterfly.call_id"] = call_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = call_id
            await send(message)

        await self._app(scope, receive, send_with_id)
