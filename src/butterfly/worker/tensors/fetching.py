"""Tensors from those who have them: from one source after the other, part by part, several parts under way."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from butterfly.blobs import FileRange
from butterfly.communication import Services
from butterfly.errors import CommunicationError, WorkerError
from butterfly.messages import PeerAddress
from butterfly.worker.tensors.cache import TensorCache
from butterfly.worker.tensors.download import Download, Wanted
from butterfly.worker.tensors.meter import Meter

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class FetchTimeouts:
    """Every wait for tensors ends after one of these."""

    peer_s: float = 5.0  # for a part from a peer; there are others to ask
    last_s: float = 30.0  # for a part from the last source: a slow link is better than none
    describe_s: float = 120.0  # until the coordinator has computed the digests of some tensors
    other_process_s: float = 5.0  # without progress of another worker of this machine that fetches the same
    num_tries: int = 3  # at the last source, as long as nothing comes


class Fetching:
    """Fetches into the cache what it is asked for. A source that fails is asked no more in this fetching."""

    def __init__(
        self, services: Services, cache: TensorCache, sources: Sequence[PeerAddress], timeouts: FetchTimeouts
    ) -> None:
        """`sources`: in the order in which they are to be asked."""
        self._services = services
        self._cache = cache
        self._sources = sources
        self._timeouts = timeouts
        self._left_out: dict[str, str] = {}  # sources by name, and why

    def fetch(self, wanted: Mapping[str, Wanted], meter: Meter) -> dict[str, FileRange]:
        """Return where all of it lies now, by digest.

        Raises WorkerError when the disk is full or no source has a tensor, with the reasons that they gave, and
        whatever the meter's progress raises.
        """
        left = dict(wanted)
        found = self._from_sources(left, meter)
        if left:  # another worker of this machine may be fetching the same
            self._wait_for_other_processes(left, meter)
            found |= self._completed_by_others(left, meter)
            found |= self._from_sources(left, meter, private=True)
        if left:
            first = next(iter(left.values()))
            others = f" and {len(left) - 1} others" if len(left) > 1 else ""
            reasons = "; ".join(self._left_out.values())
            raise WorkerError(f"nobody gave us tensor {first.name}{others}: {reasons or 'nobody has it'}")
        return found

    def _from_sources(self, left: dict[str, Wanted], meter: Meter, *, private: bool = False) -> dict[str, FileRange]:
        """Take out of `left` what the sources give."""
        found: dict[str, FileRange] = {}
        for source in self._sources:
            if left and source.name not in self._left_out:
                found |= self._from(source, left, meter, private=private)
        return found

    def _from(
        self, source: PeerAddress, left: dict[str, Wanted], meter: Meter, *, private: bool
    ) -> dict[str, FileRange]:
        is_last = source == self._sources[-1]
        timeout_s = self._timeouts.last_s if is_last else self._timeouts.peer_s
        tries_left = num_tries = self._timeouts.num_tries if is_last else 1
        client = self._services.connect_service(source)
        download = Download(client, self._cache, meter, timeout_s, private=private)
        try:
            while tries_left and left:
                before_bytes = meter.done_bytes
                try:
                    download.pull(left)
                    break
                except CommunicationError as error:
                    tries_left = num_tries if meter.done_bytes > before_bytes else tries_left - 1
                    if not tries_left:
                        logger.warning("no more tensors from %s: %s", source.name, error)
                        self._left_out[source.name] = str(error)
        finally:
            client.close()
        if download.refusal and left:  # a peer need not have everything
            logger.info("not all tensors from %s: %s", source.name, download.refusal)
            self._left_out[source.name] = f"{source.name} refused: {download.refusal}"
        return download.found

    def _wait_for_other_processes(self, left: Mapping[str, Wanted], meter: Meter) -> None:
        """Wait until none of them is being written by another process, or that process does not get on."""
        waiting = {digest for digest in left if self._cache.is_being_written(digest)}
        last_state, deadline_s = (0, 0), 0.0
        while waiting:
            state = (len(waiting), sum(map(self._cache.partial_bytes, waiting)))
            if state != last_state:
                last_state, deadline_s = state, time.monotonic() + self._timeouts.other_process_s
            elif time.monotonic() >= deadline_s:
                logger.warning("another process does not get on with %d tensors", len(waiting))
                return
            time.sleep(_LOOK_AGAIN_S)
            meter.look_up()
            waiting = {digest for digest in waiting if self._cache.is_being_written(digest)}

    def _completed_by_others(self, left: dict[str, Wanted], meter: Meter) -> dict[str, FileRange]:
        found = {}
        for digest, wanted in list(left.items()):
            where = self._cache.find(digest, wanted.num_bytes, meter.look_up)
            if where is not None:
                found[digest] = where
                del left[digest]
                meter.set(digest, wanted.num_bytes)
        return found
