"""API keys: who may call, and as whom. A key's label is its tenant, the unit of fairness between users.

Keys are kept as digests and stand in no log and in no error.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from butterfly.api.problems import Problem
from butterfly.errors import ConfigError

KEY_VARIABLE = "BUTTERFLY_API_KEY"
MIN_KEY_CHARACTERS = 8

# Probes ask these, and they tell nothing about anybody.
_OPEN_PATHS = frozenset({"/health", "/ready", "/version"})
_ENTRY = re.compile(r"(?:(?P<label>[^\s:]+):\s+)?(?P<key>\S+)")  # a key has no blanks, so `label: key` is unambiguous
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-~]*")  # what a header can carry


class ApiKeys:
    """Some keys, each with its label."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys`: label -> key."""
        self._digests = tuple((label, _digest(key)) for label, key in keys.items())

    @property
    def tenants(self) -> tuple[str, ...]:
        return tuple(label for label, _ in self._digests)

    def tenant_of(self, authorization_header: str) -> str | None:
        """Return the label of the key in `Bearer KEY`, or None."""
        scheme, _, key = authorization_header.strip().partition(" ")
        return self.tenant_of_key(key.strip()) if scheme.lower() == "bearer" else None

    def tenant_of_key(self, key: str) -> str | None:
        """Return the label of `key`, or None. Takes the same time whichever key it is, and how close to it."""
        asked = _digest(key)
        tenant = None
        for label, digest in self._digests:  # all of them, and as digests: no length and no order to measure
            if hmac.compare_digest(asked, digest):
                tenant = label
        return tenant


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class KeyMiddleware:
    """Lets calls with a known key in, with its label in `scope["butterfly.tenant"]`; others are answered 401.

    Takes `Authorization: Bearer KEY`, as OpenAI's clients send it, and `x-api-key: KEY`.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        bearer, plain = headers.get("authorization", ""), headers.get("x-api-key", "")
        tenant = self._keys.tenant_of(bearer) or self._keys.tenant_of_key(plain.strip())
        if tenant is None:
            await _refusal(has_key=bool(bearer or plain))(scope, receive, send)
            return
        scope["butterfly.tenant"] = tenant
        await self._app(scope, receive, send)


def _refusal(*, has_key: bool) -> Response:
    message = "this API key is not known here" if has_key else "this server wants an API key"
    problem = Problem(
        status=401,
        message=f"{message}; send a valid one in the header 'Authorization: Bearer KEY'",
        type="invalid_request_error",
        code="invalid_api_key",
    )
    response = problem.response()
    response.headers["www-authenticate"] = "Bearer"
    return response


# ------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True, slots=True)
class _Entry:
    place: str  # where it stands, for errors: its text is never shown
    text: str


def load_keys(options: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """Return the keys of the options and of the file, else those of BUTTERFLY_API_KEY, else None.

    An entry is a key or `label: key`; without a label it is key-N, counted over all. The file has one a line
    (blank lines and those that begin with # do not count), the environment several with commas between them.
    Raises ConfigError for a file that others can read and for entries that are no keys, or not different ones.
    """
    entries = [_Entry(f"--api-key number {number}", text) for number, text in enumerate(options, 1)]
    if file is not None:
        entries += _entries_of_file(file)
    stated = environment.get(KEY_VARIABLE, "")
    if not entries and stated.strip():
        places = enumerate(stated.split(","), 1)
        entries = [_Entry(f"{KEY_VARIABLE} number {number}", text) for number, text in places]
    return ApiKeys(_checked(entries)) if entries else None


def _entries_of_file(path: Path) -> list[_Entry]:
    lines = enumerate(_read_private(path).splitlines(), 1)
    entries = [
        _Entry(f"{path} line {number}", line) for number, line in lines if line.strip() and line.strip()[0] != "#"
    ]
    if not entries:
        raise ConfigError(f"{path} holds no API key; write one a line, as 'label: key' or just the key")
    return entries


def _read_private(path: Path) -> str:
    """Return the text of a file that only its owner can read. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{path} holds API keys, but others may read it (mode {mode:o}): chmod 600 {path}")
            return file.read()
    except OSError as error:
        raise ConfigError(f"cannot read the API keys in {path}: {error.strerror}; check --api-key-file") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text file; write one key a line, as 'label: key' or just the key") from None


def _checked(entries: Iterable[_Entry]) -> dict[str, str]:
    """Return label -> key. Raises ConfigError."""
    keys: dict[str, str] = {}
    for number, (place, label, key) in enumerate(_split(entries), 1):
        label = label or f"key-{number}"
        if label in keys:
            raise ConfigError(f"{place}: the label '{label}' is taken; every key needs one of its own")
        if key in keys.values():
            raise ConfigError(f"{place}: the same key a second time; every label needs one of its own")
        keys[label] = key
    return keys


def _split(entries: Iterable[_Entry]) -> Iterator[tuple[str, str, str]]:
    """Yield place, label ("" when there is none) and key of each entry. Raises ConfigError."""
    for entry in entries:
        found = _ENTRY.fullmatch(entry.text.strip())
        if found is None:
            raise ConfigError(f"{entry.place}: write 'label: key' or just the key, without blanks in either")
        label, key = found["label"] or "", found["key"]
        if label and not _LABEL.fullmatch(label):
            raise ConfigError(f"{entry.place}: a label has 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        if len(key) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(key):
            raise ConfigError(
                f"{entry.place}: a key has at least {MIN_KEY_CHARACTERS} characters, all of them printable ASCII; "
                "`openssl rand -hex 24` makes a good one"
            )
        yield entry.place, label, key
