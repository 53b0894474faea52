"""The coordinator as others see it: a thread with an asynchronous face."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Protocol

from butterfly.coordinator.coordinator import Coordinator
from butterfly.coordinator.request_streams import RequestStream
from butterfly.errors import ButterflyError, InvalidRequestError, NotReadyError
from butterfly.scheduling import TokenMatcher
from butterfly.specs import ClusterStatus, GrammarSpec, Request, RequestOutput

_log = logging.getLogger(__name__)


class Grammars(Protocol):
    """Compiles what outputs must match."""

    def compile(self, grammar: GrammarSpec) -> TokenMatcher:
        """Return a fresh matcher. Raises InvalidRequestError naming `grammar.param`. Called from any thread."""


class CoordinatorClient:
    """Runs a coordinator on its own thread and submits requests to it from any event loop.

    Fits the API's EngineClient.
    """

    def __init__(self, coordinator: Coordinator, grammars: Grammars) -> None:
        self._coordinator, self._grammars = coordinator, grammars
        self._thread = threading.Thread(target=self._run, name="coordinator")

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the coordinator's thread runs."""
        return self._thread.is_alive()

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Queue a request and return its outputs. Raises RequestError when it is refused."""
        self._refuse_unknown_tokens(request)
        matcher = None
        if request.grammar is not None:  # may take long; the event loop serves others
            matcher = await asyncio.to_thread(self._grammars.compile, request.grammar)
        stream = RequestStream(request, asyncio.get_running_loop(), time.monotonic(), matcher)
        self._coordinator.post(lambda: self._accept(stream))
        try:
            await stream.wait_accepted()
        except asyncio.CancelledError:
            self.abort(request.request_id)
            raise
        return self._outputs(stream)

    def _refuse_unknown_tokens(self, request: Request) -> None:
        """Raise InvalidRequestError for ids that a stage would refuse: a tokenizer may have more than the model."""
        vocab_size = self._coordinator.vocab_size
        fields = {
            "prompt": request.prompt_token_ids,
            "logit_bias": tuple(token_id for token_id, _ in request.sampling.logit_bias),
            "stop_token_ids": request.stop_token_ids if request.min_tokens else (),
        }
        for name, token_ids in fields.items():
            unknown = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
            if unknown is not None:
                raise InvalidRequestError(
                    f"token id {unknown} is outside the model's vocabulary of {vocab_size}", name, request.request_id
                )

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

    async def drain(self, worker: str) -> None:
        """Agree that a worker leaves as soon as others hold its layers.

        Raises InvalidRequestError for one that is not there, PlanError when the others cannot hold them.
        """
        agreed: concurrent.futures.Future[None] = concurrent.futures.Future()

        def command() -> None:
            try:
                self._coordinator.drain(worker)
            except ButterflyError as error:
                agreed.set_exception(error)
            else:
                agreed.set_result(None)

        self._coordinator.post(command)
        await asyncio.wrap_future(agreed)

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
