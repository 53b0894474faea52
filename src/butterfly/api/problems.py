"""Every error as an OpenAI error body, in one table: the first row that fits decides.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from butterfly.api.shapes import ErrorBody, ErrorDetail
from butterfly.errors import (
    ButterflyError,
    ContextLengthError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    PlanError,
    RequestFailedError,
    RequestTimeoutError,
)

_logger = logging.getLogger(__name__)

CLIENT_LEFT = 499  # the customary status of an answer that nobody waits for


class UnknownModelError(InvalidRequestError):
    """The client asked for a model that is not served here."""


class UnsupportedFieldError(InvalidRequestError):
    """A field of the OpenAI API that would change the output and that we do not honour yet."""


class NotAllowedError(InvalidRequestError):
    """The caller may ask, but not for this."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told about a failure."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> ErrorBody:
        """Return the OpenAI error body."""
        return ErrorBody(error=ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code))

    def response(self) -> Response:
        headers = {}
        if self.retry_after_s is not None:
            # The header takes whole seconds; 0 would invite an immediate retry.
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return json_response(self.body(), self.status, headers)


# Most specific first. The message of a ButterflyError is one line made for users.
_TABLE: tuple[tuple[type[ButterflyError], int, str | None], ...] = (
    (UnknownModelError, 404, "model_not_found"),
    (NotAllowedError, 403, "not_allowed"),
    (PlanError, 409, "does_not_fit"),
    (UnsupportedFieldError, 400, "unsupported_parameter"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (InvalidRequestError, 400, None),
    (OverloadedError, 503, "overloaded"),
    (NotReadyError, 503, "not_ready"),
    (RequestTimeoutError, 504, "timeout"),
    (RequestFailedError, 500, "request_failed"),
    (ButterflyError, 500, "internal_error"),
)


def problem_of(error: BaseException, call_id: str) -> Problem:
    """Return what to tell the client about `error`; an unexpected one only shows the id to ask about."""
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            return Problem(
                status=status,
                message=str(error),
                type="invalid_request_error" if status < 500 else "server_error",
                param=(error.param or None) if isinstance(error, InvalidRequestError) else None,
                code=code,
                retry_after_s=error.retry_after_s if isinstance(error, OverloadedError) else None,
            )
    return Problem(500, f"internal error; ask the operator about {call_id}", "server_error", code="internal_error")


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `content` (anything msgspec encodes) as a JSON response."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def log_unexpected(error: BaseException, call_id: str) -> None:
    """Keep the traceback that the client does not get. Expected errors are the client's to read."""
    if not isinstance(error, ButterflyError):
        _logger.error("call %s failed unexpectedly", call_id, exc_info=error)


def install(app: FastAPI) -> None:
    """Make every error that leaves a route an OpenAI body, and 404 and 405 too."""
    app.add_exception_handler(ButterflyError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_client_left)
    app.add_exception_handler(Exception, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    call_id: str = request.scope["butterfly.call_id"]
    log_unexpected(error, call_id)
    response = problem_of(error, call_id).response()
    # An unexpected error is answered outside the middleware that sets this header, so set it here.
    if not isinstance(error, ButterflyError):
        response.headers["x-request-id"] = call_id
    return response


async def _on_client_left(request: Request, error: Exception) -> Response:
    """A client that leaves while it sends its body is no accident of ours. Nobody reads this."""
    return Response(status_code=CLIENT_LEFT)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not accept {request.method}",
    }.get(error.status_code, str(error.detail))
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    response = Problem(error.status_code, message, kind).response()
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
