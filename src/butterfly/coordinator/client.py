"""The coordinator as others see it: a thread with an asynchronous face."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

from butterfly.coordinator.coordinator import Coordinator
from butterfly.coordinator.request_streams import RequestStream
from butterfly.errors import ButterflyError, InvalidRequestError, NotReadyError
from butterfly.specs import ClusterStatus, Request, RequestOutput

_log = logging.getLogger(__name__)


class CoordinatorClient:
    """Runs a coordinator on its own thread and submits requests to it from any event loop.

    Fits the API's EngineClient.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._thread = threading.Thread(target=self._run, name="coordinator")

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the coordinator's thread runs."""
        return self._thread.is_alive()

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Queue a request and return its outputs. Raises RequestError when it is refused."""
        known = range(self._coordinator.vocab_size)  # a tokenizer may have more tokens than the model
        unknown = next((token_id for token_id in request.prompt_token_ids if token_id not in known), None)
        if unknown is not None:
            raise InvalidRequestError(
                f"token id {unknown} is outside the model's vocabulary of {self._coordinator.vocab_size}", "prompt"
            )
        stream = RequestStream(request, asyncio.get_running_loop(), time.monotonic())
        self._coordinator.post(lambda: self._accept(stream))
        try:
            await stream.wait_accepted()
        except asyncio.CancelledError:
            self.abort(request.request_id)
            raise
        return self._outputs(stream)

    def abort(self, request_id: str) -> None:
        """End a request with `abort` soon; an unknown or finished one is ignored. Callable from any thread."""

        def command() -> None:
            try:
                self._coordinator.serving().abort(request_id, time.monotonic())
            except NotReadyError:
                _log.debug("request %s had ended with the plan", request_id)

        try:
            self._coordinator.post(command)
        except NotReadyError:
            _log.debug("request %s had ended with the coordinator", request_id)

    def status(self) -> ClusterStatus:
        return self._coordinator.status()

    def stop(self, reason: str, timeout_s: float = 10.0) -> None:
        """End every request and the thread. Idempotent."""
        try:
            self._coordinator.stop(reason)
        except NotReadyError:
            _log.debug("the coordinator has stopped already")
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _accept(self, stream: RequestStream) -> None:
        try:
            self._coordinator.serving().add(stream, time.monotonic())
        except NotReadyError as error:
            stream.refuse(error)

    async def _outputs(self, stream: RequestStream) -> AsyncIterator[RequestOutput]:
        finished = False
        try:
            async for output in stream.outputs():
                finished = output.finish_reason is not None
                yield output
        finally:
            if not finished:  # the reader went away
                self.abort(stream.request.request_id)

    def _run(self) -> None:
        try:
            self._coordinator.run()
        except ButterflyError as error:
            _log.error("the coordinator stopped: %s", error)
        except Exception:  # noqa: BLE001 - the thread's entry point: say why before it is gone
            _log.exception("the coordinator stopped on an internal error")
