"""The line of waiting requests, and how much each tenant has been served.

Fairness by virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): the tenant
that has been served least goes first, and a tenant that comes back after a pause starts level with the least served
of those present, so that nobody saves up for a burst.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator

from butterfly.scheduling.policy import AdmissionKey
from butterfly.scheduling.request_state import RequestState


class ServedTokens:
    """A virtual token counter for each tenant that has unfinished requests."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._num_requests: dict[str, int] = {}
        self._floor = 0.0  # never falls: where a tenant that comes back starts at least

    def of(self, tenant: str) -> float:
        return self._served.get(tenant, self._floor)

    def enter(self, tenant: str) -> None:
        """A request of this tenant was accepted."""
        if tenant not in self._num_requests:
            self._floor = max(self._floor, min(self._present(), default=self._floor))
            self._served[tenant] = max(self.of(tenant), self._floor)
            self._num_requests[tenant] = 0
        self._num_requests[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A request of this tenant ended. Its counter is only remembered while it is above the others'."""
        self._num_requests[tenant] -= 1
        if not self._num_requests[tenant]:
            del self._num_requests[tenant]
            # Idle time saves nothing up either: whoever comes next starts level with the last one that left.
            self._floor = max(self._floor, min(self._present(), default=self._served[tenant]))
            for absent in [name for name in self._served if name not in self._num_requests]:
                if self._served[absent] <= self._floor:
                    del self._served[absent]

    def charge(self, tenant: str, num_tokens: float) -> None:
        self._served[tenant] = self.of(tenant) + num_tokens

    def _present(self) -> Iterable[float]:
        return (self._served[tenant] for tenant in self._num_requests)


class WaitingLine:
    """Waiting requests, one line per tenant; `first` is the next one to be admitted over all of them."""

    def __init__(self, key: AdmissionKey, served: ServedTokens) -> None:
        self._key, self._served = key, served
        self._lines: dict[str, list[RequestState]] = {}
        self.num_tokens = 0  # still to be computed before the first of them has a new token

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[RequestState]:
        return (state for line in self._lines.values() for state in line)

    def push(self, state: RequestState) -> None:
        """Put a request into its place: a new one, or one that was preempted."""
        insort(self._lines.setdefault(state.request.tenant, []), state, key=lambda other: self._key(other, 0.0))
        self.num_tokens += state.num_tokens

    def first(self) -> RequestState | None:
        heads = (line[0] for line in self._lines.values())
        return min(heads, key=lambda state: self._key(state, self._served.of(state.request.tenant)), default=None)

    def clear(self) -> None:
        self._lines.clear()
        self.num_tokens = 0

    def remove(self, state: RequestState) -> None:
        line = self._lines[state.request.tenant]
        line.remove(state)
        self.num_tokens -= state.num_tokens
        if not line:
            del self._lines[state.request.tenant]
