"""From the frames of a call to the frames of its answer: all of a service but the sockets.

A call is `[number, call]`; its answer `[number, answer]`, or `[number, answer, bytes]`. The number is the caller's,
eight bytes that come back as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from butterfly.calls import Answer, Call, Knock, Refused, decode_call, encode
from butterfly.communication.admissions import Admissions
from butterfly.communication.services.checks import objection_to
from butterfly.communication.services.interface import MAX_CALL_BYTES, Caller, Handler
from butterfly.communication.services.rare_log import RareLog
from butterfly.communication.transport import Buffer
from butterfly.errors import ButterflyError, ProtocolError

NUMBER_BYTES = 8

logger = logging.getLogger(__name__)


class Desk:
    """Answers what may be asked, refuses the rest. Used by one thread; nothing that a caller sends makes it raise."""

    def __init__(self, handler: Handler, admissions: Admissions) -> None:
        self._handler = handler
        self._admissions = admissions
        self._log = RareLog(logger)

    def reply(self, public_key: str, host: str, frames: Sequence[Buffer]) -> list[Buffer] | None:
        """Return the frames of the answer; None for what is no call, and has none."""
        caller = Caller(public_key, self._admissions.name_of(public_key), host)
        if len(frames) != 2 or memoryview(frames[0]).nbytes != NUMBER_BYTES:
            self._log.warning(f"dropped {len(frames)} frames of {_who(caller)}: that is no call")
            return None
        number = bytes(frames[0])
        try:
            reply = self._answer(caller, memoryview(frames[1]))
        except ProtocolError as error:
            self._log.warning(f"refused a call: {error}")
            return [number, encode(Refused(reason=str(error)))]
        if isinstance(reply, tuple):
            return [number, encode(reply[0]), reply[1]]
        return [number, encode(reply)]

    def _answer(self, caller: Caller, frame: memoryview) -> Answer | tuple[Answer, Buffer]:
        """Raises ProtocolError for what this caller must not ask."""
        call = self._permitted(caller, frame)
        try:
            return self._handler(caller, call)
        except ButterflyError as error:
            return Refused(reason=str(error))

    def _permitted(self, caller: Caller, frame: memoryview) -> Call:
        who = _who(caller)
        if frame.nbytes > MAX_CALL_BYTES:
            raise ProtocolError(f"{who} made a call of {frame.nbytes} bytes; {MAX_CALL_BYTES} are allowed", who)
        call = decode_call(frame, who)
        if caller.name is None and not isinstance(call, Knock):
            raise ProtocolError(f"{who} asked {type(call).__name__}, but is not admitted here", who)
        if objection := objection_to(call):
            raise ProtocolError(f"{who} asked {type(call).__name__}: {objection}", who)
        return call


def _who(caller: Caller) -> str:
    return caller.name or (f"a stranger at {caller.host}" if caller.host else "a stranger")
