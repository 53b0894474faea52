"""The door of a cluster that others may join: who knocks is judged, who is in may fetch the model's tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

from butterfly import __version__, models
from butterfly.blobs import FileDigests
from butterfly.calls import Answer, Call, Knock, Welcome
from butterfly.communication import Buffer, Caller, Inbox, ZmqTransport, local_host_towards
from butterfly.communication.identity import CoordinatorState, advertise
from butterfly.config import ClusterConfig
from butterfly.coordinator.admission import Admission
from butterfly.errors import CommunicationError
from butterfly.messages import PeerAddress
from butterfly.models.cache import cache_folder
from butterfly.models.tensor_shelf import TensorShelf

_WILDCARDS = ("0.0.0.0", "*", "::")
_ANYWHERE = "tcp://192.0.2.1:9"  # an address of nobody (RFC 5737): only the way there is asked for, nothing is sent


class Door(NamedTuple):
    """An open door."""

    join_line: str  # with the secret: for the terminal of whoever started the server
    blobs: PeerAddress  # where tensors are to be had
    revoked: Callable[[], Sequence[str]]  # workers that were let in and may not stay


def told_host(host: str) -> str:
    """The address that other machines are told, for one to listen at."""
    if host not in _WILDCARDS:
        return host
    try:
        return local_host_towards(_ANYWHERE)
    except CommunicationError:  # a machine with no network at all
        return "127.0.0.1"


@contextmanager
def open_door(
    config: ClusterConfig, state: CoordinatorState, transport: ZmqTransport, inbox: Inbox, model: models.Model
) -> Iterator[Door]:
    """Answer at the port of the configuration until the block ends. Raises ConfigError, CommunicationError."""
    names = [f"worker-{index}" for index in range(config.num_workers)]
    welcome = Welcome(
        name="", inbox_port=_port_of(inbox.address), inbox_name=inbox.address.name, encrypt=config.encrypt
    )
    admission = Admission(
        state.book, welcome, transport.admit, version=__version__, is_reserved=lambda name: name in names
    )
    with ExitStack() as stack:
        shelf = stack.enter_context(closing(TensorShelf(model, FileDigests(cache_folder() / "digests.jsonl"))))

        def answer(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
            return admission.answer(caller, call, time.time()) if isinstance(call, Knock) else shelf.answer(call)

        service = stack.enter_context(closing(transport.open_service(answer, config.listen_port)))
        host = told_host(config.listen_host)
        state.remember_address(host, config.listen_port)
        if config.discoverable:
            stack.enter_context(advertise(host, config.listen_port, transport.public_key, model.spec.name))
        secret = state.own_secret(time.time())
        line = state.line((host, config.listen_port), secret).text if secret else ""
        yield Door(line, service.address, admission.revoked_names)


def _port_of(address: PeerAddress) -> int:
    return int(address.endpoint.rpartition(":")[2])
