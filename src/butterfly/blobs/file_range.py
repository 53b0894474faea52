"""Some bytes of a file."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileRange(NamedTuple):
    """Bytes [offset, offset + num_bytes) of the file at `path`."""

    path: str
    offset: int
    num_bytes: int

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return bytes [start, start + num_bytes) of the range, as far as it goes. Raises OSError.

        Fewer come only when the file has become shorter than the range.
        """
        wanted_bytes = max(0, min(num_bytes, self.num_bytes - start))
        file = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(file, wanted_bytes, self.offset + start)
        finally:
            os.close(file)
