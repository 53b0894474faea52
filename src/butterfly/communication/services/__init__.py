"""Questions with answers beside the one-way messages: joining, and tensors by their digest.

Promises: always encrypted, and the server proves its key, also where messages are not encrypted; a caller's key is
proven, and one that is not admitted gets nothing but an answer to its Knock; whatever a caller sends, or fails to
take, harms neither the server nor other callers; every wait for an answer has a deadline, and every error names its
peer; an answer is of the kind that was asked for, and has exactly the bytes that it announces.

Must not know: what is answered. One-hour change: another call is a struct in `butterfly.calls` and a line in `checks`.
"""

from butterfly.communication.services.interface import (
    MAX_CALL_BYTES,
    MAX_PART_BYTES,
    Caller,
    Handler,
    Service,
    ServiceClient,
    Services,
)

__all__ = ["MAX_CALL_BYTES", "MAX_PART_BYTES", "Caller", "Handler", "Service", "ServiceClient", "Services"]
