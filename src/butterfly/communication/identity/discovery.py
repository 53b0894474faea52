"""Coordinators that make themselves known on the local network, and workers that look for them (mDNS, DNS-SD).

What is advertised is no secret, and nobody vouches for it: anybody may advertise anything. So a worker goes by the key
in its own join secret, and what it found only tells it where the holder of that key may be.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from butterfly.communication.identity.join_line import JoinLine, JoinSecret, format_address
from butterfly.communication.identity.names import name_from
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf

SERVICE = "_butterfly._tcp.local."
_MAX_TEXT_BYTES = 200  # of one property, with its name: 255 by the standard
_ANSWER_MS = 3000  # for the details of a coordinator whose name was heard
_KEY, _MODEL = "key", "model"


class Found(NamedTuple):
    """A coordinator, as somebody on the network says."""

    name: str
    host: str  # an address
    port: int
    public_key: str
    model: str

    @property
    def address(self) -> str:
        """host:port, for people."""
        return format_address(self.host, self.port)


@contextmanager
def advertise(host: str, port: int, public_key: str, model: str, interfaces: Sequence[str] = ()) -> Iterator[None]:
    """Let `find` find a coordinator at this host and port for as long as the block lasts; takes a second to begin.

    `interfaces`: addresses of this machine to speak from, none: all.
    Raises ConfigError without the package zeroconf, and CommunicationError when the network does not let us.
    """
    with _speaking(interfaces) as zeroconf:
        from zeroconf import Error, ServiceInfo

        try:
            info = ServiceInfo(
                SERVICE,
                f"{name_from(socket.gethostname())}-{port}.{SERVICE}",
                port=port,
                parsed_addresses=_addresses_of(host),
                properties={_KEY: public_key, _MODEL: _cut(model)},
                server=f"{name_from(socket.gethostname()).replace('.', '-')}-{port}.local.",
            )
            zeroconf.register_service(info, allow_name_change=True)
        except (Error, OSError, ValueError) as error:
            raise CommunicationError(f"cannot advertise {format_address(host, port)} by mDNS: {error!r}") from error
        yield  # leaving says goodbye


def find(timeout_s: float, wanted_key: str = "", interfaces: Sequence[str] = ()) -> tuple[Found, ...]:
    """Return who advertises on the local network within `timeout_s`; at once when `wanted_key` is among them.

    Raises as `advertise` does.
    """
    listener = _Listener(wanted_key)
    with _speaking(interfaces) as zeroconf:
        from zeroconf import ServiceBrowser

        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[listener.hear])
        listener.wanted_is_there.wait(timeout_s)
        browser.cancel()
    return tuple(sorted(listener.found.values()))


def choose(found: Sequence[Found], shown: JoinSecret, timeout_s: float) -> JoinLine:
    """Return the line to the coordinator that the secret is for.

    Raises PeerTimeoutError when nobody was found within `timeout_s`, ConfigError when only others were.
    """
    for one in found:
        if one.public_key == shown.public_key:
            return JoinLine(host=one.host, port=one.port, public_key=shown.public_key, secret=shown.secret)
    if not found:
        raise PeerTimeoutError(
            f"no coordinator answered on this network within {timeout_s:g} s: is `butterfly serve --discover` running "
            "here, and may mDNS (UDP port 5353) pass? Otherwise give its whole join line with --join",
            "the coordinator",
        )
    others = ", ".join(f"{one.address} ({one.model})" for one in found)
    raise ConfigError(f"the join secret is for none of the coordinators found, whose keys are others: {others}")


class _Listener:
    """Told by a thread of zeroconf's who is there."""

    def __init__(self, wanted_key: str) -> None:
        self.found: dict[str, Found] = {}
        self.wanted_is_there = threading.Event()
        self._wanted_key = wanted_key

    def hear(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change.name == "Removed":
            self.found.pop(name, None)
            return
        info = zeroconf.get_service_info(service_type, name, timeout=_ANSWER_MS)
        found = None if info is None else _understand(info)
        if found is not None:
            self.found[name] = found
            if found.public_key == self._wanted_key:
                self.wanted_is_there.set()


def _understand(info: ServiceInfo) -> Found | None:
    """None for what does not keep to our form: anybody may say anything."""
    texts = {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in info.properties.items() if value
    }
    hosts = sorted(info.parsed_scoped_addresses(), key=lambda host: ":" in host)  # IPv4 first: the surer way
    if not hosts or not info.port or _KEY not in texts:
        return None
    model = _printable(texts.get(_MODEL, ""))
    return Found(name=info.name, host=hosts[0], port=info.port, public_key=texts[_KEY], model=model)


@contextmanager
def _speaking(interfaces: Sequence[str]) -> Iterator[Zeroconf]:
    try:
        from zeroconf import InterfaceChoice, Zeroconf
    except ImportError as error:
        raise ConfigError(
            "--discover needs the package zeroconf: pip install 'butterfly-inference[discovery]'"
        ) from error
    try:
        zeroconf = Zeroconf(interfaces=list(interfaces) or InterfaceChoice.All)
    except OSError as error:
        raise CommunicationError(f"mDNS (UDP port 5353) cannot be used here: {error}") from error
    try:
        yield zeroconf
    finally:
        zeroconf.close()


def _addresses_of(host: str) -> list[str]:
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def _cut(text: str) -> str:
    return text.encode()[:_MAX_TEXT_BYTES].decode(errors="ignore")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
