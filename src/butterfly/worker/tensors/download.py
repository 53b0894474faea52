"""Tensors from one source."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import NamedTuple

from butterfly.blobs import FileRange
from butterfly.calls import BlobPart, Call, FetchBlob, Refused
from butterfly.communication import ServiceClient
from butterfly.errors import ProtocolError
from butterfly.worker.tensors.cache import TensorCache
from butterfly.worker.tensors.meter import Meter
from butterfly.worker.tensors.partial import PartialTensor

logger = logging.getLogger(__name__)

PART_BYTES = 1 << 20


class Wanted(NamedTuple):
    """A tensor that is not here."""

    name: str  # one of its names, for people
    num_bytes: int


class Download:
    """Pulls into the cache what one source has.

    `found` is where it lies, by digest; `refusal` the first reason that the source gave for not giving something.
    """

    def __init__(
        self, client: ServiceClient, cache: TensorCache, meter: Meter, timeout_s: float, *, private: bool = False
    ) -> None:
        """`timeout_s`: for every part. `private`: another process may be at it too (see TensorCache)."""
        self._client = client
        self._cache = cache
        self._meter = meter
        self._timeout_s = timeout_s
        self._private = private
        self._asked: deque[tuple[PartialTensor, int]] = deque()  # whose part from which byte on, in order
        self._refused: set[str] = set()
        self.found: dict[str, FileRange] = {}
        self.refusal = ""

    def pull(self, left: dict[str, Wanted]) -> None:
        """Take out of `left` what the source gives.

        Raises PeerTimeoutError, ProtocolError (also for wrong bytes) and WorkerError; what has come so far stays.
        """
        # A tensor that somebody else began, and whose bytes turn out to be wrong, starts anew in another round; then
        # all of its bytes are this source's, and so is the blame.
        while self._pull_once(left):
            logger.info("some bytes from an earlier source were wrong: fetching those tensors anew")

    def _pull_once(self, left: dict[str, Wanted]) -> bool:
        """Return whether some tensors have to start anew."""
        num_anew = 0
        self._asked.clear()
        with ExitStack() as opened:
            calls = opened.enter_context(closing(self._calls(left, opened)))
            answers = self._client.call_many(calls, self._timeout_s, while_waiting=self._meter.look_up)
            for answer, payload in opened.enter_context(closing(answers)):
                partial, start = self._asked.popleft()
                if isinstance(answer, Refused):
                    self._refused.add(partial.digest)
                    self.refusal = self.refusal or answer.reason
                elif isinstance(answer, BlobPart) and payload is not None and partial.done_bytes == start:
                    num_anew += not self._take(partial, answer, payload, left)
                if partial.is_full or partial.digest in self._refused:
                    partial.close()
        return num_anew > 0

    def _calls(self, left: dict[str, Wanted], opened: ExitStack) -> Generator[Call, None, None]:
        """Yield calls for all parts that are missing, in order; tensors are opened as their turn comes."""
        for digest, wanted in list(left.items()):
            if digest in self._refused:
                continue
            partial = self._cache.open_partial(digest, wanted.num_bytes, self._meter.look_up, private=self._private)
            if partial is None:  # another process is at it
                continue
            opened.callback(partial.close)
            self._meter.set(digest, partial.done_bytes)
            if partial.is_full and self._complete(partial, left):
                continue
            for start in range(partial.done_bytes, partial.num_bytes, PART_BYTES):
                if digest in self._refused:
                    break
                self._asked.append((partial, start))
                yield FetchBlob(digest=digest, start=start, num_bytes=min(PART_BYTES, partial.num_bytes - start))

    def _take(self, partial: PartialTensor, answer: BlobPart, payload: memoryview, left: dict[str, Wanted]) -> bool:
        """Return False when the tensor has to start anew, since somebody before gave wrong bytes."""
        peer, name = self._client.peer.name, left[partial.digest].name
        if answer.total_bytes != partial.num_bytes:
            raise ProtocolError(
                f"{peer} has {answer.total_bytes} bytes as tensor {name}, not {partial.num_bytes}", peer
            )
        partial.append(payload)
        self._meter.set(partial.digest, partial.done_bytes)
        if not partial.is_full:
            return True
        was_begun_before = partial.num_resumed_bytes > 0
        if self._complete(partial, left):
            return True
        self._meter.set(partial.digest, 0)
        if was_begun_before:
            return False
        raise ProtocolError(f"{peer} gave wrong bytes as tensor {name}", peer)

    def _complete(self, partial: PartialTensor, left: dict[str, Wanted]) -> bool:
        if not partial.complete():
            return False
        self.found[partial.digest] = self._cache.note_complete(partial)
        del left[partial.digest]
        return True
