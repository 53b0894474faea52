"""The door of a cluster: who knocks is judged, if others may join, and who is in may fetch the model's tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

from butterfly import __version__, models
from butterfly.blobs import FileDigests
from butterfly.calls import Answer, Call, Knock, Refused, Welcome
from butterfly.communication import Buffer, Caller, Inbox, ZmqTransport, local_host_towards
from butterfly.communication.identity import CoordinatorState, advertise
from butterfly.config import ClusterConfig
from butterfly.coordinator.admission import Admission
from butterfly.embedded.workforce import is_own_name
from butterfly.errors import CommunicationError
from butterfly.folders import cache_folder
from butterfly.messages import PeerAddress
from butterfly.models.tensor_shelf import TensorShelf

_WILDCARDS = ("0.0.0.0", "*", "::")
_ANYWHERE = "192.0.2.1:9"  # an address of nobody (RFC 5737): only the way there is asked for, nothing is sent
_NOBODY_JOINS = Refused(reason="nobody may join this server: it was started without --listen HOST:PORT")


class Door(NamedTuple):
    """An open door."""

    join_line: str  # with the secret: for the terminal of whoever started the server; empty: nobody may join, or knows
    blobs: PeerAddress  # where tensors are to be had
    admission: Admission | None = None  # None: nobody may join

    def revoked(self) -> Sequence[str]:
        """Workers that were let in and may not stay, each once."""
        return self.admission.revoked_names() if self.admission else ()


def told_host(config: ClusterConfig) -> str:
    """The address that workers are told, for the one to listen at."""
    if config.listen_host not in _WILDCARDS:
        return config.listen_host
    is_address = ":" in config.ray_address
    try:
        return local_host_towards(f"tcp://{config.ray_address if is_address else _ANYWHERE}")
    except CommunicationError:  # a machine with no network at all
        return "127.0.0.1"


@contextmanager
def open_door(
    config: ClusterConfig, state: CoordinatorState | None, transport: ZmqTransport, inbox: Inbox, model: models.Model
) -> Iterator[Door]:
    """Answer at the port of the configuration, or at any, until the block ends. Without a state, nobody may join.

    Raises ConfigError, CommunicationError.
    """
    admission = _admission(config, state, transport, inbox) if state else None
    with ExitStack() as stack:
        shelf = stack.enter_context(closing(TensorShelf(model, FileDigests(cache_folder() / "digests.jsonl"))))

        def answer(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
            if not isinstance(call, Knock):
                return shelf.answer(call)
            return admission.answer(caller, call, time.time()) if admission else _NOBODY_JOINS

        service = stack.enter_context(closing(transport.open_service(answer, config.listen_port)))
        if state is None or admission is None:
            yield Door("", service.address)
            return
        host = told_host(config)
        state.remember_address(host, config.listen_port)
        if config.discoverable:
            stack.enter_context(advertise(host, config.listen_port, transport.public_key, model.spec.name))
        secret = state.own_secret(time.time())
        line = state.line((host, config.listen_port), secret).text if secret else ""
        yield Door(line, service.address, admission)


def _admission(config: ClusterConfig, state: CoordinatorState, transport: ZmqTransport, inbox: Inbox) -> Admission:
    welcome = Welcome(
        name="", inbox_port=_port_of(inbox.address), inbox_name=inbox.address.name, encrypt=config.encrypt
    )
    return Admission(
        state.book,
        welcome,
        transport.admit,
        version=__version__,
        is_reserved=lambda name: is_own_name(config, name),
    )


def _port_of(address: PeerAddress) -> int:
    return int(address.endpoint.rpartition(":")[2])
