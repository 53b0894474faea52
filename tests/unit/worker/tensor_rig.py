"""A coordinator's shelf behind a real service, and workers with caches, for tests of where tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from butterfly.blobs import FileDigests
from butterfly.calls import Answer, Call, FetchBlob
from butterfly.communication import Buffer, Caller, Handler, KeyPair, Service, ZmqTransport
from butterfly.messages import Load, PeerAddress
from butterfly.models import Model
from butterfly.models.tensor_shelf import TensorShelf
from butterfly.specs import TensorEntry
from butterfly.worker.tensors import FetchTimeouts, TensorCache, TensorSource
from tests.support.tensor_files import content, stored_model
from tests.unit.worker.loads import load_of

SIZES = {
    "embedding": 3_500_000,
    "layers.0.q": (2 << 20) + 12,
    "layers.0.k": 1 << 20,
    "layers.0.attn_norm": 64,
    "output_norm": 64,
}
TOTAL_BYTES = sum(SIZES.values())
LIMIT_BYTES = 100 << 20
QUICK = FetchTimeouts(peer_s=0.5, last_s=0.5, describe_s=10.0, other_process_s=0.3, num_tries=2)


def needs_of(load: Load) -> tuple[tuple[TensorEntry, ...], tuple[PeerAddress, ...]]:
    """What a load asks a tensor source for: the tensors, and who may have them."""
    return load.tensors, load.sources


class Cluster:
    """A home with a model, and any number of workers that know one another's keys. To be closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closing = ExitStack()
        self.transports: dict[str, ZmqTransport] = {}
        self.sources: dict[str, TensorSource] = {}
        self.asked: dict[str, list[Call]] = {}
        folder.joinpath("home").mkdir()
        self.model: Model = stored_model(folder / "home" / "model", SIZES)
        self.shelf = TensorShelf(self.model, FileDigests())
        self.home = self.serve("home", lambda caller, call: self.shelf.answer(call))
        self.closing.callback(self.shelf.close)

    def transport(self, name: str) -> ZmqTransport:
        if name not in self.transports:
            transport = ZmqTransport(name, KeyPair.generate())
            for other, known in self.transports.items():
                transport.admit(other, known.public_key)
                known.admit(name, transport.public_key)
            self.transports[name] = transport
            self.closing.callback(transport.close)
        return self.transports[name]

    def serve(self, name: str, handler: Handler) -> Service:
        asked = self.asked.setdefault(name, [])

        def noted(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
            asked.append(call)
            return handler(caller, call)

        return self.transport(name).open_service(noted)

    def worker(
        self, name: str, *, cache: str = "", limit_bytes: int = LIMIT_BYTES, model_file: Path | None = None
    ) -> TensorSource:
        """Return a worker's source; with the name of a cache it shares that one with others."""
        folder = self.folder / (cache or name)
        digests = FileDigests(folder / "digests.jsonl")
        source = TensorSource(
            self.transport(name),
            TensorCache(folder, limit_bytes, digests),
            digests,
            model_file=model_file,
            timeouts=QUICK,
        )
        self.closing.callback(source.close)
        return source

    def load(
        self, *peers: PeerAddress, names: Iterable[str] = SIZES, home: PeerAddress | None = None, here: bool = False
    ) -> Load:
        """Return a load of these tensors; unless they are `here`, their file exists nowhere on this machine."""
        entries = (self.model.tensors[name] for name in names)
        tensors = tuple(entry if here else replace(entry, file=f"/not-here{entry.file}") for entry in entries)
        return replace(load_of("worker"), tensors=tensors, sources=(*peers, home or self.home.address))

    def fetched_bytes(self, name: str) -> int:
        return sum(call.num_bytes for call in self.asked[name] if isinstance(call, FetchBlob))

    def check(self, located: tuple[TensorEntry, ...], load: Load) -> None:
        """Assert that these are the tensors of the load, byte for byte, in files of this machine."""
        for entry, asked in zip(located, load.tensors, strict=True):
            assert replace(entry, file="", offset=0) == replace(asked, file="", offset=0)
            assert content(entry) == content(self.model.tensors[entry.name])

    def close(self) -> None:
        self.closing.close()


class Meter:
    """A progress that remembers what it heard."""

    def __init__(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.steps: list[tuple[int, int]] = []
        self._on_progress = on_progress

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self.steps.append((done_bytes, total_bytes))
        self._on_progress(done_bytes, total_bytes)


def cache_files(folder: Path) -> Mapping[str, int]:
    """Return the sizes of tensors in a cache by file name, complete or partial."""
    return {path.name: path.stat().st_size for path in (folder / "tensors").iterdir() if len(path.name) >= 64}
