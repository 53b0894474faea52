"""A TCP proxy on loopback that records what passes, and cuts connections when it is told to."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType

_CHUNK_BYTES = 64 << 10
_LOOK_S = 0.02


class TcpProxy:
    """Forwards `host`:`port` to 127.0.0.1:`target_port`, on a thread of its own, until the end of its `with` block."""

    def __init__(
        self, target_port: int, *, host: str = "127.0.0.1", port: int = 0, cut_after_bytes: int | None = None
    ) -> None:
        """`cut_after_bytes`: the first connection is cut when so many bytes have come back from the target."""
        self.to_target = bytearray()
        self.from_target = bytearray()
        self.num_connections = 0
        self.num_cuts = 0
        self._target_port = target_port
        self._cut_after_bytes = cut_after_bytes
        self._listener = socket.create_server((host, port))
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other_end: dict[socket.socket, tuple[socket.socket, bytearray]] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._forward, name="tcp-proxy")

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join()
        self._cut_all()
        self._selector.close()
        self._listener.close()

    def _forward(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(_LOOK_S):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._other_end:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            target = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:  # nobody is there now
            client.close()
            return
        self.num_connections += 1
        for here, there, record in ((client, target, self.to_target), (target, client, self.from_target)):
            self._other_end[here] = there, record
            self._selector.register(here, selectors.EVENT_READ)

    def _pass_on(self, here: socket.socket) -> None:
        there, record = self._other_end[here]
        try:
            data = here.recv(_CHUNK_BYTES)
            there.sendall(data)
        except OSError:
            data = b""
        record += data
        is_due = self._cut_after_bytes is not None and len(self.from_target) >= self._cut_after_bytes
        if not data:
            self._cut(here, there)
        elif is_due and self.num_cuts == 0:
            self.num_cuts += 1
            self._cut_all()

    def _cut_all(self) -> None:
        for here, (there, _) in list(self._other_end.items()):
            self._cut(here, there)

    def _cut(self, *ends: socket.socket) -> None:
        for end in ends:
            if self._other_end.pop(end, None) is not None:
                self._selector.unregister(end)
                end.close()
