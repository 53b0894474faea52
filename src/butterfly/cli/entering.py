"""From the options of `butterfly worker` to a worker that was let in: by an invitation, a join line, or discovery."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from butterfly import __version__
from butterfly.communication import KeyPair, ZmqTransport, local_host_towards
from butterfly.communication.identity import (
    NAME_RULE,
    JoinLine,
    choose,
    find,
    is_name,
    name_from,
    parse_join_line,
    parse_join_secret,
    worker_keys,
)
from butterfly.communication.services import ServiceClient
from butterfly.errors import ConfigError
from butterfly.folders import state_folder
from butterfly.messages import Invitation, PeerAddress
from butterfly.worker import read_invitation
from butterfly.worker.joining import WayIn

logger = logging.getLogger(__name__)

JOIN_VARIABLE = "BUTTERFLY_JOIN"
SECRET_VARIABLE = "BUTTERFLY_SECRET"
STANDARD_INPUT = "-"

_MAX_LINE_CHARACTERS = 4096
_WILDCARDS = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryOptions:
    """What was said on the command line; "" for what was not."""

    invitation: str = ""
    join: str = ""
    discover: bool = False
    secret: str = ""
    name: str = ""
    encrypt: bool = True
    timeout_s: float = 60.0

    def __repr__(self) -> str:
        return "EntryOptions(...)"  # has secrets


class Start(NamedTuple):
    """How this process is to begin."""

    invitation: Invitation
    encrypt: bool
    enter_again: Callable[[], Invitation] | None  # None: it was invited, and cannot knock


@contextmanager
def entered(options: EntryOptions, environment: Mapping[str, str]) -> Iterator[Start]:
    """Read the invitation, or knock until the coordinator lets this worker in.

    The kept keys of a worker that knocked are this process's alone until the block ends. Raises ConfigError for
    options that do not fit together, and CommunicationError when it is not let in.
    """
    if options.secret and not options.discover:
        raise ConfigError("--secret is for --discover; with --join, the secret is in the line")
    if is_invited(options, environment):
        if options.name:
            raise ConfigError("--name is for --join and --discover: an invitation has a name")
        yield Start(read_invitation(options.invitation), options.encrypt, None)
        return
    wanted = wanted_name(options.name)
    line = discovered_line(options, environment) if options.discover else stated_line(options.join, environment)
    with worker_keys(state_folder(), line.public_key, wanted) as (name, keys):
        way_in = WayIn(line, name, keys, partial(_knocking, name, keys), __version__)
        entry = way_in.enter(options.timeout_s)
        logger.info("let in by %s as %s", line.address, entry.invitation.name)
        yield Start(entry.invitation, entry.encrypt, partial(way_in.enter_again, entry))


def is_invited(options: EntryOptions, environment: Mapping[str, str]) -> bool:
    """Whether it is an invitation, and not a knock, that lets it in. Raises ConfigError unless there is just one way.

    The environment counts only when nothing was said: a worker that a worker's neighbour launches inherits it.
    """
    ways = {"--invitation": options.invitation, "--join": options.join, "--discover": options.discover}
    given = [way for way, value in ways.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are different ways to join: give one of them")
    if not given and not environment.get(JOIN_VARIABLE):
        raise ConfigError(f"say whom to join: --join LINE (or {JOIN_VARIABLE}), --discover, or --invitation FILE")
    return bool(options.invitation)


def wanted_name(name: str) -> str:
    """Return the name, or one after this host's. Raises ConfigError."""
    if name and not is_name(name):
        raise ConfigError(f"--name {name!r} cannot be a worker's name: {NAME_RULE}")
    return name or name_from(socket.gethostname())


def stated_line(join: str, environment: Mapping[str, str]) -> JoinLine:
    """Return the line of --join, of standard input or of the environment. Raises ConfigError."""
    if join == STANDARD_INPUT:
        join = sys.stdin.readline(_MAX_LINE_CHARACTERS)
    return parse_join_line(join or environment.get(JOIN_VARIABLE, ""))


def discovered_line(options: EntryOptions, environment: Mapping[str, str]) -> JoinLine:
    """Find the coordinator that the secret is for. Raises ConfigError, CommunicationError."""
    stated = options.secret or environment.get(SECRET_VARIABLE, "")
    if not stated:
        raise ConfigError(
            f"--discover finds a coordinator, but a secret lets this worker in: give KEY.SECRET, all that stands "
            f"behind the # of a join line, in {SECRET_VARIABLE}"
        )
    shown = parse_join_secret(stated)
    line = choose(find(options.timeout_s, shown.public_key), shown, options.timeout_s)
    logger.info("found the coordinator at %s", line.address)
    return line


def listening_hosts(host: str, coordinator: str) -> tuple[str, str]:
    """Return the address to listen at and the one that peers are told, for --listen-host.

    A name or address that is not this machine's own, such as its router's, is told while all are listened at.
    Raises ConfigError for a host that does not exist, CommunicationError when there is no way to the coordinator.
    """
    if not host:
        own = local_host_towards(coordinator)
        return own, own
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--listen-host {host}: {error}") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0))
        except OSError:
            return _WILDCARDS[family], host
    return str(address[0]), host


@contextmanager
def _knocking(name: str, keys: KeyPair, door: PeerAddress) -> Iterator[ServiceClient]:
    with closing(ZmqTransport(name, keys)) as transport, closing(transport.connect_service(door)) as client:
        yield client
