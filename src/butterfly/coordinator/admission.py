"""Answers those who knock: who may work here, and under which name."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from time import gmtime, strftime

from butterfly.calls import Knock, Refused, Welcome
from butterfly.communication.identity import NAME_RULE, Book, BookFile, JoinToken, is_name
from butterfly.communication.services import Caller
from butterfly.communication.services.rare_log import RareLog
from butterfly.errors import ConfigError
from butterfly.messages import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

_MAX_WRONG_SECRETS = 5  # then strangers are sent away for a moment
_PAUSE_S = 1.0
_MAX_HOSTS = 1024  # of which wrong secrets are counted
_MAX_LOGGED_CHARACTERS = 64  # of what a stranger says of itself

_BUSY = Refused(reason="the coordinator is not taking in workers at this moment; try again", is_final=False)


class Admission:
    """Judges knocks by the book, and has the transport let in who is welcome.

    `answer` is for one thread and `revoked_names` for one, which may be another. Times are Unix time in seconds,
    as the book has them. No answer waits: after every fifth wrong secret from one host, unknown keys from there are
    sent away for a second before their secret is looked at. Keys that were let in before are not held up by that.
    """

    def __init__(
        self,
        book: BookFile,
        welcome: Welcome,
        admit: Callable[[str, str], None],
        *,
        version: str,
        is_reserved: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """`welcome` is what everybody is told who may come in, but for the name. `admit(name, public_key)` is called
        before that. `version` is ours, for people; `is_reserved(name)` says which names nobody may have, beside that of
        the coordinator's inbox.
        """
        self.admit = admit
        self._book = book
        self._welcome = welcome
        self._version = version
        self._is_reserved = lambda name: name == welcome.inbox_name or is_reserved(name)
        self._guesses = _Guesses()
        self._log = RareLog(logger)
        self._lock = threading.Lock()  # guards _inside
        self._inside: dict[str, str] = {}  # name -> key, of those that were welcomed by this process

    def answer(self, caller: Caller, knock: Knock, now_s: float) -> Welcome | Refused:
        """Return the answer to a knock."""
        try:
            answer = self._judge(caller, knock, now_s)
        except ConfigError as error:  # whose words are not for strangers
            logger.error("cannot take in a worker: %s", error)
            return _BUSY
        if isinstance(answer, Refused):
            host = f"{_short(caller.host)} ({_short(knock.host)!r})"  # as seen, and as it says
            self._log.warning(f"refused a worker on {host}: {answer.reason}")
        return answer

    def revoked_names(self) -> tuple[str, ...]:
        """Return the names of workers that were let in by this process and revoked since, each once.

        Cheap while the book has not changed. A book that cannot be read revokes nobody.
        """
        try:
            book = self._book.read()
        except ConfigError as error:
            logger.error("cannot see who was revoked: %s", error)
            return ()
        with self._lock:
            gone = tuple(name for name, key in self._inside.items() if _is_out(book, key))
            for name in gone:
                del self._inside[name]
        return gone

    def _judge(self, caller: Caller, knock: Knock, now_s: float) -> Welcome | Refused:
        book = self._book.read()
        known = book.worker_of(caller.public_key)
        is_known = known is not None and not book.is_out(known)
        if not is_known and self._guesses.are_too_many(caller.host, now_s):
            return _BUSY
        token = book.token_of(knock.secret)
        if token is None:
            self._guesses.add(caller.host, now_s)
            return Refused(reason="the join secret is not known here: ask for a new join line")
        if objection := self._objection(token, knock, now_s, is_known=is_known):
            return Refused(reason=objection)
        if known is not None and known.revoked_s is not None:
            return Refused(reason=f"the key of this worker ({known.name}) was revoked on {_date(known.revoked_s)}")
        return self._let_in(caller.public_key, knock, token, now_s)

    def _objection(self, token: JoinToken, knock: Knock, now_s: float, *, is_known: bool) -> str:
        """What speaks against one who knows the secret of this token; "" for nothing."""
        if token.revoked_s is not None:
            return f"join token {token.id} was revoked on {_date(token.revoked_s)}: ask for a new join line"
        if token.expires_s is not None and token.has_expired(now_s) and not is_known:
            return f"join token {token.id} expired on {_date(token.expires_s)}: ask for a new join line"
        if knock.protocol_version != PROTOCOL_VERSION:
            return (
                f"the worker runs Butterfly {_short(knock.version)} (protocol {knock.protocol_version}), the "
                f"coordinator {self._version} (protocol {PROTOCOL_VERSION}): install the same version on both"
            )
        if not is_name(knock.name):
            return f"{_short(knock.name)!r} cannot be a worker's name: {NAME_RULE}"
        return ""

    def _let_in(self, public_key: str, knock: Knock, token: JoinToken, now_s: float) -> Welcome:
        name = ""

        def note(book: Book) -> Book:
            nonlocal name  # chosen under the lock: another process may have written a moment ago
            name = book.name_for(public_key, knock.name, self._is_reserved)
            return book.with_welcomed(public_key, name, token.id, _short(knock.host), now_s)

        try:
            self._book.change(note)
        except ConfigError as error:
            known = self._book.read().worker_of(public_key)
            if known is None or known.token_id != token.id:
                raise
            logger.error("cannot note that %s came back: %s", known.name, error)  # a full disk keeps nobody out
            name = known.name
        self.admit(name, public_key)
        with self._lock:  # only now: who is not let in yet cannot be sent away
            self._inside = {other: key for other, key in self._inside.items() if key != public_key}
            self._inside[name] = public_key
        logger.info("let in %s from %s by token %s", name, _short(knock.host), token.id)
        return Welcome(
            name=name,
            inbox_port=self._welcome.inbox_port,
            inbox_name=self._welcome.inbox_name,
            encrypt=self._welcome.encrypt,
        )


class _Guesses:
    """Counts wrong secrets by host: a stranger can have as many keys as it likes, but not as many addresses."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # network -> how many, when last

    def add(self, host: str, now_s: float) -> None:
        network = _network(host)
        num_wrong, _ = self._wrong.pop(network, (0, now_s))
        self._wrong[network] = num_wrong + 1, now_s
        if len(self._wrong) > _MAX_HOSTS:
            self._wrong.popitem(last=False)

    def are_too_many(self, host: str, now_s: float) -> bool:
        num_wrong, last_s = self._wrong.get(_network(host), (0, now_s))
        is_just_past = 0 <= now_s - last_s < _PAUSE_S  # a clock that was set back ends the pause
        return is_just_past and num_wrong > 0 and num_wrong % _MAX_WRONG_SECRETS == 0


def _network(host: str) -> str:
    """Who has an IPv6 address has some 2^64 of them."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(int(address) >> 64) if isinstance(address, IPv6Address) and not address.ipv4_mapped else host


def _is_out(book: Book, public_key: str) -> bool:
    worker = book.worker_of(public_key)
    return worker is not None and book.is_out(worker)


def _short(text: str) -> str:
    """What a stranger says, fit for a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_LOGGED_CHARACTERS])


def _date(time_s: float) -> str:
    return strftime("%Y-%m-%d %H:%M UTC", gmtime(time_s))
