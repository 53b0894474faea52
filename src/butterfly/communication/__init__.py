"""Moves messages and tensors between peers.

Promises: messages of one sender arrive once each and in order while its connection lives; every wait
has a deadline and every error names its peer; a slow receiver slows its senders down; nothing from a
stranger gets in; the sender's name comes from its key, never from what it says; what arrives is a valid
message with exactly the payload that it announces, or a ProtocolError. Questions with answers go their own way:
`services`.

Must not know: layers, requests, torch.

One-hour change: a new transport is one file that keeps the Protocols in `transport` and one row in
tests/contract/test_transports.py; the wire shape is `frames`, which message belongs to a plan is
`epochs`, the sizes of tensors are `hidden`.
"""

from butterfly.communication.epochs import EpochGate
from butterfly.communication.hidden import BYTES_PER_VALUE, check_hidden, tensor_num_bytes
from butterfly.communication.in_process import InProcessNetwork, InProcessTransport
from butterfly.communication.keys import KeyPair
from butterfly.communication.routes import local_host_towards
from butterfly.communication.services import Caller, Handler, Service, ServiceClient, Services
from butterfly.communication.transport import Buffer, Inbox, Outbox, Received, Transport
from butterfly.communication.zeromq import ZmqTransport

__all__ = [
    "BYTES_PER_VALUE",
    "Buffer",
    "Caller",
    "EpochGate",
    "Handler",
    "InProcessNetwork",
    "InProcessTransport",
    "Inbox",
    "KeyPair",
    "Outbox",
    "Received",
    "Service",
    "ServiceClient",
    "Services",
    "Transport",
    "ZmqTransport",
    "check_hidden",
    "local_host_towards",
    "tensor_num_bytes",
]
