"""The one line that lets a worker in: `butterfly://HOST:PORT#KEY.SECRET`.

KEY is the coordinator's CURVE key as base64url of its 32 bytes, because Z85 has characters that shells and URLs take
for their own. It makes the first byte encrypted and the coordinator proven. SECRET admits the worker. Both stand
behind the `#`, the part of a URL that programs which follow URLs do not send anywhere.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass, field

from zmq.utils import z85

from butterfly.errors import ConfigError
from butterfly.messages import PeerAddress

SCHEME = "butterfly://"
KEY_BYTES = 32
SECRET_BYTES = 24  # random ones; the standard for such secrets is 16 at least
MIN_SECRET_CHARACTERS = 22  # of base64url: 16 bytes
MAX_SECRET_CHARACTERS = 256

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class JoinSecret:
    """Whom to trust, and what to show them: the part of a join line that does not say where."""

    public_key: str  # of the coordinator, as Z85
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """KEY.SECRET. Contains the secret."""
        return f"{_key_text(self.public_key)}.{self.secret}"


@dataclass(frozen=True, slots=True)
class JoinLine:
    """Where a coordinator is, and a JoinSecret. The secret shows in no repr, only in `text`."""

    host: str  # a name or an address, IPv6 without its brackets
    port: int
    public_key: str  # of the coordinator, as Z85
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The line. Contains the secret."""
        return f"{SCHEME}{self.address}#{JoinSecret(self.public_key, self.secret).text}"

    @property
    def address(self) -> str:
        """host:port, for people."""
        return format_address(self.host, self.port)

    @property
    def door(self) -> PeerAddress:
        """Where to knock."""
        return PeerAddress(
            name=f"the coordinator at {self.address}", endpoint=f"tcp://{self.address}", public_key=self.public_key
        )


def make_secret() -> str:
    """Return a new secret of 192 random bits as base64url."""
    return secrets.token_urlsafe(SECRET_BYTES)


def format_address(host: str, port: int) -> str:
    """('::1', 7700) -> '[::1]:7700'."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """'[::1]:7700' -> ('::1', 7700). Raises ConfigError."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is no address; write HOST:PORT, and an IPv6 address in brackets: [::1]:7700")
    port = int(found["port"])
    if not 0 < port < 1 << 16:
        raise ConfigError(f"{text!r} has no port between 1 and 65535")
    return found["ipv6"] or found["host"], port


def parse_join_line(text: str) -> JoinLine:
    """Raises ConfigError that says what is wrong and never quotes what stands behind the `#`."""
    line = text.strip()
    if not line.startswith(SCHEME):
        raise ConfigError(f"a join line begins with {SCHEME}; this one does not")
    address, mark, rest = line.removeprefix(SCHEME).partition("#")
    if not mark:
        raise ConfigError("the join line has no '#' and nothing behind it: give all of it, in quotes")
    host, port = parse_address(address.removesuffix("/"))
    found = _parse_pair(rest, "the join line")
    return JoinLine(host=host, port=port, public_key=found.public_key, secret=found.secret)


def parse_join_secret(text: str) -> JoinSecret:
    """Read KEY.SECRET, or take it from a whole join line. Raises ConfigError, as parse_join_line does."""
    if text.strip().startswith(SCHEME):
        line = parse_join_line(text)
        return JoinSecret(line.public_key, line.secret)
    if "." not in text:  # alone it would be shown to whoever claims to be a coordinator
        raise ConfigError("the secret has no key in front: give KEY.SECRET, all behind the # of a join line")
    return _parse_pair(text.strip(), "the secret")


def _parse_pair(text: str, where: str) -> JoinSecret:
    key, dot, secret = text.partition(".")
    if not dot:
        raise ConfigError(f"{where} has no '.' between key and secret: was it cut?")
    public_key = _parse_key(key, where)
    if not _BASE64URL.fullmatch(secret):
        raise ConfigError(f"{where} has characters in its secret that are not base64url: was it copied right?")
    if not MIN_SECRET_CHARACTERS <= len(secret) <= MAX_SECRET_CHARACTERS:
        raise ConfigError(
            f"the secret of {where} has {len(secret)} characters, but there must be {MIN_SECRET_CHARACTERS} to "
            f"{MAX_SECRET_CHARACTERS}: was it cut?"
        )
    return JoinSecret(public_key, secret)


def _parse_key(text: str, where: str) -> str:
    wrong = f"the key of {where} is not {KEY_BYTES} bytes as base64url ({len(text)} characters): was it copied right?"
    if not _BASE64URL.fullmatch(text):
        raise ConfigError(wrong)
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise ConfigError(wrong) from None
    if len(raw) != KEY_BYTES:
        raise ConfigError(wrong)
    return z85.encode(raw).decode("ascii")


def _key_text(public_key: str) -> str:
    return base64.urlsafe_b64encode(z85.decode(public_key)).rstrip(b"=").decode("ascii")
