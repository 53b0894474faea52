"""Server-sent events: from pieces of bytes, cut anywhere, to the data of whole events."""

from __future__ import annotations

from butterfly.errors import ProtocolError

_MAX_LINE_BYTES = 1 << 20  # a chunk of an answer is far smaller; what is not is no event stream


class EventParser:
    """Keeps what is not yet a whole event. Lines end with LF or CRLF; no server we know of uses a lone CR."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that `piece` completes. Raises ProtocolError for a line without end."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ProtocolError(f"a line of the stream is longer than {_MAX_LINE_BYTES} bytes")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
            # everything else is a comment (llama-server keeps connections open with them), or a field we do not need
        return events
