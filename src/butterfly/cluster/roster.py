"""Everybody who works here, or did until a short while ago, each in one row that stays where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from butterfly.cluster.events import WorkerJoined
from butterfly.cluster.members import Deadlines, Member
from butterfly.specs import WorkerPhase


class Roster:
    """The members by name, in the order in which they were expected or first joined."""

    def __init__(self, launched: Sequence[str], now_s: float) -> None:
        self._members = {name: Member(name, is_launched=True, started_s=now_s) for name in launched}
        self._former: set[str] = set()  # names that had a row: late news of them is no surprise

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def get(self, name: str) -> Member | None:
        return self._members.get(name)

    def is_former(self, name: str) -> bool:
        """Whether it was a member once, and is none now."""
        return name in self._former and name not in self._members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def connected(self) -> tuple[str, ...]:
        return tuple(member.name for member in self if member.is_connected)

    @property
    def losses(self) -> tuple[str, ...]:
        """How each worker that is lost came to be so, in words."""
        return tuple(member.loss for member in self if member.loss)

    def in_phase(self, phase: WorkerPhase) -> list[Member]:
        return [member for member in self if member.phase == phase]

    def join(self, event: WorkerJoined) -> None:
        """Give a newcomer a row, or take one back into the row that it had."""
        member = self._members.setdefault(event.worker, Member(event.worker))
        member.join(event)

    def remove(self, name: str) -> None:
        del self._members[name]
        self._former.add(name)

    def remove_long_lost(self, now_s: float, deadlines: Deadlines) -> None:
        """Lost workers go out of sight after a while, but for those that we started ourselves."""
        for member in self.in_phase("lost"):
            if not member.is_launched and now_s - member.lost_s > deadlines.forget_lost_s:
                self.remove(member.name)
