"""Models whose tensors are random bytes in one file: for whatever moves tensors and does not compute with them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from butterfly.models import Model, open_model
from butterfly.specs import TensorEntry


def stored_model(path: Path, sizes: Mapping[str, int], seed: int = 0) -> Model:
    """Return a model with tensors of these sizes in bytes (multiples of 4), written into `path`."""
    entries = {}
    with path.open("wb") as file:
        file.write(b"header")
        for name, num_bytes in sizes.items():
            entries[name] = TensorEntry(
                name=name,
                storage="F32",
                shape=(num_bytes // 4,),
                num_bytes=num_bytes,
                file=str(path),
                offset=file.tell(),
            )
            file.write(random.Random(f"{seed}{name}").randbytes(num_bytes))
    return replace(open_model("random:llama,hidden=64,layers=1,vocab=256"), tensors=entries)


def content(entry: TensorEntry) -> bytes:
    """Return the bytes of a tensor that lies in a file."""
    with Path(entry.file).open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.num_bytes)


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()
