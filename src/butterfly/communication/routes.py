"""Which of this machine's addresses a peer can reach."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from butterfly.errors import CommunicationError


def local_host_towards(endpoint: str) -> str:
    """Return the address that this machine has on its way to `endpoint` (tcp://host:port). Nothing is sent.

    Raises CommunicationError when there is no way, or no such host.
    """
    try:
        parts = urlsplit(endpoint)
        target = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(*target[:3]) as probe:
            probe.connect(target[4])
            return str(probe.getsockname()[0])
    except (OSError, ValueError) as error:
        raise CommunicationError(f"there is no way from here to {endpoint}: {error}") from error
