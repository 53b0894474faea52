"""How a worker gets its identity: one line of JSON, from its launcher's pipe or from a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from butterfly.communication import KeyPair
from butterfly.errors import ConfigError
from butterfly.messages import Invitation, encode_invitation

_MAX_BYTES = 64 << 10


def write_invitation(invitation: Invitation, path: Path) -> None:
    """Write a new file that only its owner can read. Raises ConfigError, also when the file exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the invitation to {path}: {error.strerror}") from error
    with open(descriptor, "wb") as file:
        file.write(encode_invitation(invitation))


def read_invitation(source: str | Path, stdin_descriptor: int = 0) -> Invitation:
    """Read an invitation from a file, or from standard input when `source` is "-".

    From standard input exactly one line is taken; what follows stays unread (see `lifeline`).
    Raises ConfigError for a missing, public or malformed invitation; the message never quotes it.
    """
    if str(source) == "-":
        return parse_invitation(_read_line(stdin_descriptor), "on standard input")
    path = Path(source)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the invitation {path}: {error.strerror}") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"others can read the secret in {path}: run `chmod 600 {path}`")
    return parse_invitation(content, f"in {path}")


def parse_invitation(line: bytes, where: str) -> Invitation:
    """Return the invitation in `line`. Raises ConfigError that says `where`, not what."""
    try:
        invitation = msgspec.json.decode(line, type=Invitation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # `from None`: the decoder's message and the context could quote the secret
        raise ConfigError(f"there is no valid invitation {where}") from None
    KeyPair(invitation.public_key, invitation.secret_key).check()
    return invitation


def _read_line(descriptor: int) -> bytes:
    line = bytearray()
    while len(line) < _MAX_BYTES and (byte := os.read(descriptor, 1)):
        if byte == b"\n":
            break
        line += byte
    return bytes(line)
