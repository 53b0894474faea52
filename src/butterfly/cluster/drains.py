"""Who was asked to leave: in line, then agreed while the others take over what it holds."""

from __future__ import annotations


class Drains:
    """One is dealt with at a time. A worker that is told to exit is not in here any more."""

    def __init__(self) -> None:
        self._line: list[str] = []
        self._agreed = ""
        self._refusals: dict[str, str] = {}

    @property
    def first(self) -> str:
        """Who is next; empty: nobody."""
        return self._line[0] if self._line else ""

    @property
    def line(self) -> tuple[str, ...]:
        return tuple(self._line)

    @property
    def agreed(self) -> str:
        """For whom the others are making room now; empty: for nobody."""
        return self._agreed

    def wants(self, worker: str) -> bool:
        return worker in self._line or worker == self._agreed

    def request(self, worker: str) -> None:
        self._refusals.pop(worker, None)
        if not self.wants(worker):
            self._line.append(worker)

    def agree(self, worker: str) -> None:
        self._line.remove(worker)
        self._agreed = worker

    def refuse(self, worker: str, reason: str) -> None:
        self._line.remove(worker)
        self._refusals[worker] = reason

    def refusal(self, worker: str) -> str:
        return self._refusals.get(worker, "")

    def put_back(self) -> None:
        """A loss came between: it must be asked again whether this one may leave as well."""
        if self._agreed:
            self._line.insert(0, self._agreed)
            self._agreed = ""

    def settle(self, worker: str) -> None:
        """It leaves or is lost: there is nothing to decide any more."""
        self._line = [name for name in self._line if name != worker]
        self._agreed = "" if self._agreed == worker else self._agreed
        self._refusals.pop(worker, None)
