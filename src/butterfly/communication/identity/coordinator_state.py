"""What a coordinator keeps, so that after a restart it is still the same one for everybody who knew it."""

from __future__ import annotations

from pathlib import Path

from butterfly.communication.identity.book import make_token
from butterfly.communication.identity.book_file import BookFile
from butterfly.communication.identity.join_line import JoinLine, make_secret
from butterfly.communication.identity.kept_keys import kept_keys
from butterfly.communication.identity.private_files import locked, read_private, write_private
from butterfly.communication.keys import KeyPair
from butterfly.specs import Spec


class _OwnToken(Spec, frozen=True):
    token_id: str
    secret: str


class _Address(Spec, frozen=True):
    host: str
    port: int


class CoordinatorState:
    """The coordinator's part of the state folder: its key pair, its book, and the secret of a token of its own.

    The book has only digests of secrets. That one secret is kept beside it, in a file that only the owner may read,
    so that a server can print the same join line every time it starts. All secrets of others are shown once.
    """

    def __init__(self, state: Path) -> None:
        """Reads the key pair, or makes one. Raises ConfigError."""
        self._folder = state / "coordinator"
        self._lock_path = self._folder / "keys.lock"
        with locked(self._lock_path):
            self._keys = kept_keys(self._folder / "keys.json")
        self._book = BookFile(self._folder)

    @property
    def keys(self) -> KeyPair:
        return self._keys

    @property
    def book(self) -> BookFile:
        return self._book

    def own_secret(self, now_s: float) -> str | None:
        """Return the secret of the token that is shown at every start, made when no token is valid at all.

        None when it is not valid any more but another is: nobody can show that one's secret again.
        Raises ConfigError.
        """
        path = self._folder / "own-token.json"
        with locked(self._lock_path):
            book = self._book.read()
            own = read_private(path, _OwnToken)
            valid = {token.id for token in book.tokens if token.is_valid(now_s)}
            if own is not None and own.token_id in valid:
                return own.secret
            if valid:
                return None
            secret = make_secret()
            token = make_token(secret, now_s, note="made by serve")
            write_private(path, _OwnToken(token_id=token.id, secret=secret))
            self._book.change(lambda book: book.with_token(token))
            return secret

    def new_secret(self, now_s: float, *, note: str = "", expires_s: float | None = None) -> str:
        """Make a token and return its secret, which cannot be had again. Raises ConfigError."""
        secret = make_secret()
        token = make_token(secret, now_s, note=note, expires_s=expires_s)
        self._book.change(lambda book: book.with_token(token))
        return secret

    def line(self, address: tuple[str, int], secret: str) -> JoinLine:
        """Return the join line with this secret for who can reach host and port `address`."""
        host, port = address
        return JoinLine(host=host, port=port, public_key=self._keys.public_key, secret=secret)

    def remember_address(self, host: str, port: int) -> None:
        """Keep where workers knock now, for join lines that are made later. Raises ConfigError."""
        with locked(self._lock_path):
            write_private(self._folder / "address.json", _Address(host=host, port=port))

    def remembered_address(self) -> tuple[str, int] | None:
        """Return what was remembered last, by any server that shares the folder. Raises ConfigError."""
        address = read_private(self._folder / "address.json", _Address)
        return None if address is None else (address.host, address.port)
