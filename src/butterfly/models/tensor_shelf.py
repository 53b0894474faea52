"""What the coordinator answers to those who want tensors of its model: their digests, and parts of their bytes.

Digests of a large model take a while to compute, and whoever answers calls must be quick: a thread of the shelf's own
computes them, in the order in which they are asked for, and until it has them the answer is "not yet".
"""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from butterfly.blobs import FileDigests, FileRange, answer_fetch
from butterfly.calls import BlobPart, Call, DescribeTensors, FetchBlob, Refused, TensorDigests
from butterfly.errors import ModelFormatError
from butterfly.models.model import Model
from butterfly.models.weights import EMBEDDING, LM_HEAD
from butterfly.specs import TensorEntry


class TensorShelf:
    """Answers DescribeTensors and FetchBlob from one model's files. Safe to use from any thread; to be closed."""

    def __init__(self, model: Model, digests: FileDigests) -> None:
        entries = _entries(model)
        self._names = frozenset(entries)
        self._ranges = {name: _range(entry) for name, entry in entries.items() if entry.file}
        self._digests = digests
        self._lock = threading.Lock()  # guards what follows
        self._digest_of: dict[FileRange, str] = {}
        self._range_of: dict[str, FileRange] = {}
        self._unreadable: dict[FileRange, str] = {}  # why; told once, then tried again
        self._wanted: deque[FileRange] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False

    def answer(self, call: Call) -> TensorDigests | Refused | tuple[BlobPart, bytes]:
        """Return the answer at once. Refused with `is_final=False`: the digests are being computed."""
        if isinstance(call, DescribeTensors):
            return self._describe(call)
        if isinstance(call, FetchBlob):
            return answer_fetch(self._range_of.get(call.digest), call)
        return Refused(reason=f"{type(call).__name__} is not answered here")

    def close(self) -> None:
        """End the computing of digests, soon. Idempotent."""
        self._closing = True
        thread = self._thread
        if thread is not None:
            thread.join()

    def _describe(self, call: DescribeTensors) -> TensorDigests | Refused:
        for name in call.names:
            if name not in self._ranges:
                reason = "has no bytes in a file" if name in self._names else "is none of this model"
                return Refused(reason=f"tensor {name} {reason}")
        ranges = [self._ranges[name] for name in call.names]
        with self._lock:
            for where in ranges:
                if (why := self._unreadable.pop(where, "")) != "":
                    return Refused(reason=why)
            for where in ranges:
                if where not in self._digest_of and (digest := self._digests.remembered(where)) is not None:
                    self._keep(where, digest)
            missing = [where for where in ranges if where not in self._digest_of]
            if not missing:
                return TensorDigests(digests=tuple(self._digest_of[where] for where in ranges))
            self._compute(missing)
        reason = f"the digests of {len(missing)} tensors are being computed"
        return Refused(reason=reason, is_final=False)

    def _keep(self, where: FileRange, digest: str) -> None:
        self._digest_of[where], self._range_of[digest] = digest, where

    def _compute(self, missing: list[FileRange]) -> None:
        """Have the thread compute these too. The lock is held."""
        waiting = set(self._wanted)
        self._wanted.extend(where for where in missing if where not in waiting)
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._work, name="digests", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Compute until there is nothing more to do; the next one who asks starts another thread."""
        while True:
            with self._lock:
                if self._closing or not self._wanted:
                    self._thread = None
                    return
                where = self._wanted[0]
            try:
                digest = self._digests.digest(where, self._check_closing)
            except _Closing:
                continue
            except ModelFormatError as error:
                with self._lock:
                    self._unreadable[where] = str(error)
                    self._wanted.popleft()
            else:
                with self._lock:
                    self._keep(where, digest)
                    self._wanted.popleft()

    def _check_closing(self) -> None:
        if self._closing:
            raise _Closing


class _Closing(Exception):
    """Ends the hashing of a large tensor."""


def _entries(model: Model) -> dict[str, TensorEntry]:
    """As stages name them: a tied head is the embedding under another name."""
    entries = dict(model.tensors)
    if model.spec.tied_embedding:
        entries[LM_HEAD] = msgspec.structs.replace(entries[EMBEDDING], name=LM_HEAD)
    return entries


def _range(entry: TensorEntry) -> FileRange:
    return FileRange(entry.file, entry.offset, entry.num_bytes)
