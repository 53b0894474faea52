"""A worker's side of measuring links: it answers probes at once, and sends some when it is told to."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import closing

from butterfly.communication import Outbox, Transport
from butterfly.errors import PeerTimeoutError, ProtocolError
from butterfly.messages import Echo, PeerAddress, Probe, TensorHeader
from butterfly.specs import LinkSpec
from butterfly.worker.round_trips import LARGE_BYTES, SMALL_BYTES, measure_link

logger = logging.getLogger(__name__)

_VALUE_BYTES = 2  # of bfloat16, as which a payload is announced
_REST_S = 0.008  # before a small probe: both ends have gone to sleep, as between two steps of decode


class Probing:
    """Outboxes to those who probe us, and the probe that is under way."""

    def __init__(self, transport: Transport, own_address: PeerAddress, home: Outbox, deadline_s: float) -> None:
        """`deadline_s` is how long an answer may take; `home` leads to the coordinator, which probes too."""
        self._transport, self._own_address, self._home, self._deadline_s = transport, own_address, home, deadline_s
        self._outboxes: dict[str, Outbox] = {}
        self._number = 0
        self._heard: tuple[str, int, float] | None = None  # the last echo: sender, number, when

    def answer(self, probe: Probe, sender: str) -> None:
        """Raises ProtocolError for a probe that is to be answered to somebody else."""
        if probe.reply_to.name != sender:
            raise ProtocolError(f"{sender} sent a probe to be answered to {probe.reply_to.name}", sender)
        try:
            self._outbox_to(probe.reply_to).send(
                Echo(epoch=probe.epoch, number=probe.number), timeout_s=self._deadline_s
            )
        except PeerTimeoutError as error:
            logger.info("%s", error)  # it waits no longer either, and says so

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
        for outbox in self._outboxes.values():
            outbox.close()
        self._outboxes.clear()

    def _outbox_to(self, peer: PeerAddress) -> Outbox:
        if peer == self._home.peer:
            return self._home
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
