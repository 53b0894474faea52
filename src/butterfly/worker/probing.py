"""A worker's side of measuring links: it answers probes at once, and sends some when it is told to.

Only who was introduced is answered, and only where the coordinator said that it is. An answer never waits: one that
cannot leave yet, as before a connection stands, is tried again by the loop.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from butterfly.communication import Outbox, Transport
from butterfly.errors import PeerTimeoutError, ProtocolError
from butterfly.messages import Echo, PeerAddress, Probe, TensorHeader
from butterfly.specs import LinkSpec
from butterfly.worker.round_trips import LARGE_BYTES, SMALL_BYTES, measure_link

logger = logging.getLogger(__name__)

_VALUE_BYTES = 2  # of bfloat16, as which a payload is announced
_REST_S = 0.008  # before a small probe: both ends have gone to sleep, as between two steps of decode


@dataclass(slots=True)
class _Owed:
    """An answer that has not left yet."""

    outbox: Outbox
    echo: Echo
    end_s: float  # then whoever asked waits no longer


class Probing:
    """Who may probe us, outboxes to those who did, and the probe that is under way."""

    def __init__(self, transport: Transport, own_address: PeerAddress, home: Outbox, deadline_s: float) -> None:
        """`deadline_s` is how long an answer may take; `home` leads to the coordinator, which probes too."""
        self._transport, self._own_address, self._home, self._deadline_s = transport, own_address, home, deadline_s
        self._introduced: dict[str, PeerAddress] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._owed: dict[str, _Owed] = {}  # to each the newest answer only
        self._number = 0
        self._heard: tuple[str, int, float] | None = None  # the last echo: sender, number, when

    def introduce(self, peer: PeerAddress) -> None:
        """This peer may probe us."""
        self._introduced[peer.name] = peer

    def dismiss(self, name: str) -> None:
        self._introduced.pop(name, None)
        self._owed.pop(name, None)
        if (outbox := self._outboxes.pop(name, None)) is not None:
            outbox.close()

    def answer(self, probe: Probe, sender: str) -> None:
        """Never waits. Raises ProtocolError for a probe to be answered to somebody else, or elsewhere than it is."""
        if probe.reply_to.name != sender:
            raise ProtocolError(f"{sender} sent a probe to be answered to {probe.reply_to.name}", sender)
        is_home = sender == self._home.peer.name
        if not is_home and self._introduced.get(sender) != probe.reply_to:
            raise ProtocolError(
                f"{sender} sent a probe to be answered at {probe.reply_to.endpoint}, where nobody was introduced",
                sender,
            )
        outbox = self._home if is_home else self._outbox_to(probe.reply_to)
        echo = Echo(epoch=probe.epoch, number=probe.number)
        self._owed[sender] = _Owed(outbox, echo, time.monotonic() + self._deadline_s)
        self.settle()

    @property
    def owes(self) -> bool:
        """Whether an answer could not leave yet: call `settle` soon."""
        return bool(self._owed)

    def settle(self) -> None:
        """Send the answers that are owed, as far as they leave at once."""
        for name, owed in tuple(self._owed.items()):
            try:
                owed.outbox.send(owed.echo, timeout_s=0)
            except PeerTimeoutError as error:
                if time.monotonic() < owed.end_s:
                    continue
                logger.info("%s", error)  # it waits no longer either, and says so
            del self._owed[name]

    def hear(self, echo: Echo, sender: str, received_s: float) -> None:
        """An answer, perhaps to the probe that is under way."""
        self._heard = sender, echo.number, received_s

    def probe(self, peer: PeerAddress, epoch: int, wait: Callable[[float], None]) -> LinkSpec:
        """Measure the link to this peer. `wait` receives for so long at most, and hands each echo to `hear`.

        Raises PeerTimeoutError naming the peer when it does not answer; exceptions of `wait` pass through.
        """
        noise = memoryview(random.Random(0).randbytes(LARGE_BYTES[-1]))  # which nothing on the way can compress
        with closing(self._transport.connect(peer)) as outbox:

            def round_trip(num_bytes: int) -> float:
                if num_bytes == SMALL_BYTES:
                    _rest(wait)
                self._number += 1
                header = TensorHeader(dtype="bfloat16", shape=(num_bytes // _VALUE_BYTES,))
                probe = Probe(epoch=epoch, number=self._number, reply_to=self._own_address, payload=header)
                sent_s = time.monotonic()
                outbox.send(probe, noise[:num_bytes], timeout_s=self._deadline_s)
                return self._wait_for_echo(peer.name, wait) - sent_s

            return measure_link(self._own_address.name, peer.name, round_trip)

    def close(self) -> None:
        """Close the connections to those who have probed us. Probes that still come open new ones."""
        self._owed.clear()
        for outbox in self._outboxes.values():
            outbox.close()
        self._outboxes.clear()

    def _outbox_to(self, peer: PeerAddress) -> Outbox:
        known = self._outboxes.get(peer.name)
        if known is None or known.peer != peer:
            if known is not None:
                known.close()
            known = self._outboxes[peer.name] = self._transport.connect(peer)
        return known

    def _wait_for_echo(self, peer: str, wait: Callable[[float], None]) -> float:
        deadline_s = time.monotonic() + self._deadline_s
        while self._heard is None or self._heard[:2] != (peer, self._number):
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise PeerTimeoutError(
                    f"{self._own_address.name} got no answer to a probe of {peer} within {self._deadline_s:g} s", peer
                )
            wait(remaining_s)
        return self._heard[2]


def _rest(wait: Callable[[float], None]) -> None:
    until_s = time.monotonic() + _REST_S
    while (remaining_s := until_s - time.monotonic()) > 0:
        wait(remaining_s)
