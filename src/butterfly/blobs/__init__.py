"""Ranges of files, found by the digest of their bytes.

Promises: `FileDigests` computes the digest of a range once, and remembers it for as long as the file is the same one,
in this process and the next; `answer_fetch` gives parts of exactly the range that it is handed, never of another.

Must not know: what the bytes are, who asks for them, sockets.
"""

from butterfly.blobs.answers import answer_fetch
from butterfly.blobs.digests import FileDigests, Hasher, is_digest, new_hasher
from butterfly.blobs.file_range import FileRange

__all__ = ["FileDigests", "FileRange", "Hasher", "answer_fetch", "is_digest", "new_hasher"]
