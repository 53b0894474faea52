"""The answer to FetchBlob, the same wherever the bytes lie."""

from __future__ import annotations

from butterfly.blobs.file_range import FileRange
from butterfly.calls import BlobPart, FetchBlob, Refused


def answer_fetch(found: FileRange | None, call: FetchBlob) -> Refused | tuple[BlobPart, bytes]:
    """Return the part that is asked for of what was found under the digest, or why there is none.

    No path is named: the one who asks needs not know ours.
    """
    if found is None:
        return Refused(reason=f"there is nothing here with the digest {call.digest[:12]}...")
    if call.start < 0 or call.num_bytes < 0:
        return Refused(reason=f"{call.num_bytes} bytes from {call.start} on are no part of anything")
    try:
        data = found.read(call.start, call.num_bytes)
    except OSError as error:
        return Refused(reason=f"{call.digest[:12]}... cannot be read here any more: {error.strerror}")
    if len(data) != max(0, min(call.num_bytes, found.num_bytes - call.start)):
        return Refused(reason=f"the file of {call.digest[:12]}... has become shorter here")
    return BlobPart(total_bytes=found.num_bytes), data
