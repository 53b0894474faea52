"""From the tensors of a Load to the same tensors in files of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from butterfly.blobs import FileDigests, FileRange, answer_fetch
from butterfly.calls import Answer, Call, DescribeTensors, FetchBlob, Refused, TensorDigests
from butterfly.communication import Caller, ServiceClient, Services
from butterfly.errors import ModelFormatError, PeerTimeoutError, WorkerError
from butterfly.messages import PeerAddress
from butterfly.specs import TensorEntry
from butterfly.worker.tensors.cache import TensorCache
from butterfly.worker.tensors.download import Wanted
from butterfly.worker.tensors.fetching import Fetching, FetchTimeouts
from butterfly.worker.tensors.meter import Meter, Progress

logger = logging.getLogger(__name__)

_NAMES_PER_CALL = 32
_ASK_AGAIN_S = 0.2


class TensorSource:
    """Finds or fetches tensors, and gives them on to peers. One thread locates; any may ask for an answer.

    `model_file` is a copy of the model's file, or of the folder of its files, that somebody put here.
    """

    def __init__(
        self,
        services: Services,
        cache: TensorCache,
        digests: FileDigests,
        *,
        model_file: Path | None = None,
        timeouts: FetchTimeouts = FetchTimeouts(),  # noqa: B008 - frozen
    ) -> None:
        self._services = services
        self._cache = cache
        self._digests = digests
        self._model_file = model_file
        self._timeouts = timeouts
        self._located: Mapping[str, FileRange] = {}  # of the present load, by digest; replaced, never changed

    def locate(
        self, tensors: Sequence[TensorEntry], sources: Sequence[PeerAddress], progress: Progress
    ) -> tuple[TensorEntry, ...]:
        """Return the tensors as files of this machine, in their order. Without sources they are already.

        `progress` hears (done bytes, total bytes) several times a second and may raise to abandon this. Raises
        WorkerError when a tensor cannot be had or the cache cannot hold it, PeerTimeoutError when the coordinator
        does not tell the digests.
        """
        stored = [entry for entry in tensors if entry.file]
        if not sources or not stored:
            return tuple(tensors)
        digests = self._describe(sources[-1], stored, progress)
        sizes = {digests[entry.name]: entry.num_bytes for entry in stored}
        meter = Meter(sum(sizes.values()), progress)
        found = self._find_here(stored, digests, meter)
        cached = {digest: size for digest, size in sizes.items() if digest not in found}
        if cached:
            self._cache.hold(cached)
            found |= self._fetch(sources, stored, digests, found, meter)
        else:
            self._cache.release()
        self._located = found
        return tuple(_at(entry, found[digests[entry.name]]) if entry.file else entry for entry in tensors)

    def answer(self, caller: Caller, call: Call) -> Answer | tuple[Answer, bytes]:
        """Give a peer what is here: a handler for a service."""
        if not isinstance(call, FetchBlob):
            return Refused(reason=f"{type(call).__name__} is not answered here")
        return answer_fetch(self._located.get(call.digest) or self._cache.peek(call.digest), call)

    def close(self) -> None:
        """Let go of what is held in the cache; the files stay. Idempotent."""
        self._cache.release()

    # ------------------------------------------------------------------------------------ describing

    def _describe(self, home: PeerAddress, stored: Sequence[TensorEntry], progress: Progress) -> dict[str, str]:
        """Return the digests by name. Raises PeerTimeoutError, and WorkerError when it is refused for good."""
        total_bytes = sum(entry.num_bytes for entry in stored)
        names = [entry.name for entry in stored]
        digests: dict[str, str] = {}
        with closing(self._services.connect_service(home)) as client:
            for first in range(0, len(names), _NAMES_PER_CALL):
                some = tuple(names[first : first + _NAMES_PER_CALL])
                answer = self._ask(client, DescribeTensors(names=some), lambda: progress(0, total_bytes))
                digests |= zip(some, answer.digests, strict=True)
        return digests

    def _ask(self, client: ServiceClient, call: DescribeTensors, look_up: Callable[[], None]) -> TensorDigests:
        """Ask until the coordinator has computed them."""
        deadline_s = time.monotonic() + self._timeouts.describe_s
        name = client.peer.name
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            answer, _ = client.call(call, min(remaining_s, self._timeouts.last_s), while_waiting=look_up)
            if isinstance(answer, TensorDigests):
                return answer
            if isinstance(answer, Refused) and answer.is_final:
                raise WorkerError(f"{name} does not tell the digests of the tensors: {answer.reason}")
            time.sleep(_ASK_AGAIN_S)
            look_up()
        raise PeerTimeoutError(f"{name} had no digests within {self._timeouts.describe_s:g} s", name)

    # -------------------------------------------------------------------------------------- finding

    def _find_here(
        self, stored: Sequence[TensorEntry], digests: Mapping[str, str], meter: Meter
    ) -> dict[str, FileRange]:
        """Return what need not be fetched, and is not the cache's: by digest, and it is what the digest says."""
        found: dict[str, FileRange] = {}
        others: set[str] = set()  # files that hold another model, or another version
        for entry in stored:
            digest = digests[entry.name]
            if digest in found or self._cache.peek(digest) is not None:
                continue
            for path in self._candidates(entry):
                where = FileRange(path, entry.offset, entry.num_bytes)
                if path in others:
                    continue
                if self._has(where, digest, meter):
                    found[digest] = where
                    meter.set(digest, entry.num_bytes)
                    break
                others.add(path)
        return found

    def _candidates(self, entry: TensorEntry) -> Iterator[str]:
        if self._model_file is not None:
            is_folder = self._model_file.is_dir()
            yield str(self._model_file / Path(entry.file).name if is_folder else self._model_file)
        yield entry.file

    def _has(self, where: FileRange, digest: str, meter: Meter) -> bool:
        try:
            if self._digests.digest(where, meter.look_up) == digest:
                return True
        except ModelFormatError as error:
            logger.debug("not used: %s", error)
            return False
        logger.info("%s is not the coordinator's file, and not used", where.path)
        return False

    # ------------------------------------------------------------------------------------- fetching

    def _fetch(
        self,
        sources: Sequence[PeerAddress],
        stored: Sequence[TensorEntry],
        digests: Mapping[str, str],
        here: Mapping[str, FileRange],
        meter: Meter,
    ) -> dict[str, FileRange]:
        """Return the rest, from the cache, and fetched into it."""
        cached: dict[str, FileRange] = {}
        wanted: dict[str, Wanted] = {}
        for entry in stored:
            digest = digests[entry.name]
            if digest in here or digest in cached or digest in wanted:
                continue
            where = self._cache.find(digest, entry.num_bytes, meter.look_up)
            if where is None:
                wanted[digest] = Wanted(entry.name, entry.num_bytes)
            else:
                cached[digest] = where
                meter.set(digest, entry.num_bytes)
        if wanted:
            cached |= Fetching(self._services, self._cache, sources, self._timeouts).fetch(wanted, meter)
        return cached


def _at(entry: TensorEntry, where: FileRange) -> TensorEntry:
    return replace(entry, file=where.path, offset=where.offset)
