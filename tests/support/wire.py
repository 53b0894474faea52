"""What passes over loopback, as the kernel sees it. Needs root."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Collection
from types import TracebackType
from typing import Self

_EVERYTHING = 0x0003  # ETH_P_ALL
_ETHERNET_BYTES = 14
_TCP = 6
_OUTGOING = 4  # PACKET_OUTGOING
_LOOK_S = 0.1
_BUFFER_BYTES = 32 << 20


def can_listen_in() -> bool:
    return hasattr(socket, "AF_PACKET") and os.geteuid() == 0


class Wire:
    """Records the contents of TCP packets from or to some ports of this machine, until the end of its block."""

    def __init__(self, ports: Collection[int]) -> None:
        self.recorded = bytearray()
        self._ports = frozenset(ports)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(_LOOK_S)
        self._closing = False
        self._thread = threading.Thread(target=self._record, name="wire")

    def _record(self) -> None:
        while not self._closing:
            try:
                packet, where = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if where[2] != _OUTGOING:  # loopback shows every packet as it goes and as it comes
                self._take(memoryview(packet)[_ETHERNET_BYTES:])

    def _take(self, packet: memoryview) -> None:
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != _TCP:
            return
        segment = packet[(packet[0] & 15) * 4 :]
        source, target = struct.unpack_from("!HH", segment)
        if source in self._ports or target in self._ports:
            self.recorded += segment[(segment[12] >> 4) * 4 :]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join()
        self._socket.close()
