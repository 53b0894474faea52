"""The way in: knock at the coordinator of a join line until it answers, make an invitation of its welcome, and join."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from butterfly.calls import Answer, Call, Knock, Refused, Welcome
from butterfly.communication import KeyPair
from butterfly.communication.identity import JoinLine, format_address
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError, ProtocolError
from butterfly.messages import PROTOCOL_VERSION, Invitation, Join, PeerAddress
from butterfly.worker.resources import NodeResources

logger = logging.getLogger(__name__)

AGAIN_S = 3600.0  # for a coordinator that is gone to come back; meanwhile the worker keeps its weights

_ANSWER_S = 3.0  # of one knock; an answer takes a few milliseconds
_PAUSE_S = 0.5  # between two


class KnockClient(Protocol):
    """What is wanted of a connection to the coordinator: a part of communication.services.ServiceClient."""

    def call(self, call: Call, timeout_s: float) -> tuple[Answer, memoryview | None]: ...


class Entry(NamedTuple):
    """A worker that was let in."""

    invitation: Invitation
    encrypt: bool  # whether the coordinator wants links encrypted


class WayIn:
    """One worker's way into one cluster, to be taken again when the coordinator has been started anew."""

    def __init__(
        self,
        line: JoinLine,
        wanted_name: str,
        keys: KeyPair,
        connect: Callable[[PeerAddress], AbstractContextManager[KnockClient]],
        version: str,
    ) -> None:
        """`connect` opens a connection that proves `keys`; `version` is ours, for people."""
        self._line = line
        self._keys = keys
        self._connect = connect
        self._knock = Knock(
            secret=line.secret,
            name=wanted_name,
            protocol_version=PROTOCOL_VERSION,
            version=version,
            host=socket.gethostname(),
        )

    def enter(self, timeout_s: float) -> Entry:
        """Knock until there is an answer; a coordinator that does not answer yet is waited for.

        Raises CommunicationError with its reason when it says no for good, PeerTimeoutError with what was heard last
        after `timeout_s`, ProtocolError for an answer to something else; all name the coordinator's address.
        """
        door = self._line.door
        deadline_s = time.monotonic() + timeout_s
        last_words = ""
        with self._connect(door) as client:
            while (remaining_s := deadline_s - time.monotonic()) > 0:
                try:
                    answer, _ = client.call(self._knock, min(_ANSWER_S, remaining_s))
                except PeerTimeoutError as error:
                    words = str(error)
                else:
                    if isinstance(answer, Welcome):
                        return self._entry(answer)
                    words = _reason(answer, door)
                if not last_words:
                    logger.warning("waiting for %s, up to %g s: %s", door.name, timeout_s, words)
                last_words = words
                time.sleep(min(_PAUSE_S, max(0.0, deadline_s - time.monotonic())))
        raise PeerTimeoutError(f"{door.name} did not let us in within {timeout_s:g} s: {last_words}", door.name)

    def enter_again(self, entered: Entry, timeout_s: float = AGAIN_S) -> Invitation:
        """Knock as `enter` does, at a coordinator that may have been started anew.

        Raises ConfigError, too, when it does not encrypt as the one before did: our connections do as they were told.
        """
        entry = self.enter(timeout_s)
        if entry.encrypt != entered.encrypt:
            wants = "encrypted" if entry.encrypt else "unencrypted"
            raise ConfigError(f"{self._line.door.name} wants {wants} links now: start this worker again")
        return entry.invitation

    def _entry(self, welcome: Welcome) -> Entry:
        line = self._line
        coordinator = PeerAddress(
            name=welcome.inbox_name,
            endpoint=f"tcp://{format_address(line.host, welcome.inbox_port)}",
            public_key=line.public_key,
        )
        invitation = Invitation(
            name=welcome.name,
            coordinator=coordinator,
            public_key=self._keys.public_key,
            secret_key=self._keys.secret_key,
        )
        return Entry(invitation, welcome.encrypt)


def join_message(resources: NodeResources, inbox: PeerAddress, last_epoch: int, blobs: PeerAddress | None) -> Join:
    """What this process says of itself when it joins, under the name of its inbox. For the rest, see `Join`."""
    return Join(
        epoch=0,
        worker=inbox.name,
        protocol_version=PROTOCOL_VERSION,
        host=resources.host,
        pid=os.getpid(),
        device=resources.device,
        memory_bytes=resources.memory_bytes,
        memory_bandwidth_bytes_per_s=resources.memory_bandwidth_bytes_per_s,
        inbox=inbox,
        last_epoch=last_epoch,
        blobs=blobs,
    )


def _reason(answer: Answer, door: PeerAddress) -> str:
    """Why not yet. Raises for what is no answer to a knock, and for a no that stays one."""
    if not isinstance(answer, Refused):
        kind = type(answer).__name__
        raise ProtocolError(f"{door.name} answered a knock with {kind}", door.name)
    if answer.is_final:
        raise CommunicationError(f"{door.name} refuses this worker: {answer.reason}", door.name)
    return answer.reason
