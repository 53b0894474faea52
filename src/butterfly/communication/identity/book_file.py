"""The book on disk, shared by a running server and `butterfly token`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from butterfly.communication.identity.book import Book
from butterfly.communication.identity.private_files import locked, read_private, write_private
from butterfly.errors import ConfigError

_Version = tuple[int, int, int]  # inode, time of the last change in ns, bytes: another one after every change

_NOTHING: _Version = (0, 0, 0)


class BookFile:
    """One JSON file in a folder of its owner's. Safe to use from any thread, and from several processes at once."""

    def __init__(self, folder: Path) -> None:
        """The folder, and the file in it, may not exist yet."""
        self._path = folder / "joined.json"
        self._lock_path = folder / "lock"
        self._seen: tuple[_Version, Book] = (_NOTHING, Book())

    def read(self) -> Book:
        """Return what the file holds now; it is read again only when it has changed. Raises ConfigError."""
        version, book = self._seen
        now = self._version()
        if now != version:
            book = read_private(self._path, Book) or Book()
            self._seen = (now, book)
        return book

    def change(self, edit: Callable[[Book], Book]) -> Book:
        """Write what `edit` makes of the book, and return it; others wait meanwhile. Raises ConfigError."""
        with locked(self._lock_path):
            before = self.read()
            after = edit(before)
            if after != before:
                write_private(self._path, after)
                self._seen = (self._version(), after)
        return after

    def _version(self) -> _Version:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return _NOTHING
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        return status.st_ino, status.st_mtime_ns, status.st_size
