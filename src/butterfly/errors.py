"""Every error that Butterfly raises on purpose, drawn as one tree.

ButterflyError                      an expected failure: one line for the user, no traceback
├── ConfigError                     an option, file or environment value is wrong
├── ModelError                      the model cannot be used
│   ├── ModelNotFoundError          nothing at that path, alias or hub id
│   ├── ModelFormatError            the file is truncated, foreign or inconsistent
│   └── UnsupportedModelError       a family, tensor type or rope scaling that we do not run
├── PlanError
│   └── InfeasiblePlanError         no placement satisfies the constraints (lists them)
├── CommunicationError              carries `peer`
│   ├── PeerTimeoutError            a deadline passed while waiting for a peer
│   ├── PeerLostError               the peer closed, died or was removed
│   └── ProtocolError               a frame that is not a valid message, or not the tensor the plan announces
├── WorkerError                     a worker could not load or run its stage; carries `worker`
├── LaunchError                     a worker process could not be started
└── RequestError                    carries `request_id` when there is one
    ├── InvalidRequestError         the client's fault; carries `param`
    │   └── ContextLengthError      prompt and output can never fit the context or the KV cache
    ├── OverloadedError             the queue is full; try again after `retry_after_s`
    ├── NotReadyError               the model is not loaded on every stage
    └── RequestFailedError          an accepted request that ended with `error`
        └── RequestTimeoutError     because its own deadline passed

Foreign errors (torch, zmq, OS) are translated to the most specific kind where they are caught.
"""

from __future__ import annotations


class ButterflyError(Exception):
    """An expected failure. `str(error)` is one line that says what is wrong and what to do."""


class ConfigError(ButterflyError):
    """A wrong option, configuration file or environment value."""


class ModelError(ButterflyError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """No model at the given path, alias or hub id."""


class ModelFormatError(ModelError):
    """A model file that is truncated, foreign or inconsistent with itself."""


class UnsupportedModelError(ModelError):
    """A well-formed model that uses something Butterfly does not run."""


class PlanError(ButterflyError):
    """A plan cannot be made or used."""


class InfeasiblePlanError(PlanError):
    """No placement satisfies the constraints; `violations` lists each with its figures."""

    def __init__(self, message: str, violations: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations


class CommunicationError(ButterflyError):
    """Something went wrong between this process and `peer`."""

    def __init__(self, message: str, peer: str = "") -> None:
        super().__init__(message)
        self.peer = peer


class PeerTimeoutError(CommunicationError):
    """A deadline passed while waiting for `peer`."""


class PeerLostError(CommunicationError):
    """`peer` closed, died or was removed."""


class ProtocolError(CommunicationError):
    """`peer` sent something that is not a valid message in this place."""


class WorkerError(ButterflyError):
    """`worker` could not load or run its stage."""

    def __init__(self, message: str, worker: str = "") -> None:
        super().__init__(message)
        self.worker = worker


class LaunchError(ButterflyError):
    """A worker process could not be started."""


class RequestError(ButterflyError):
    """A request cannot be served; `request_id` is empty before the request has one."""

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequestError(RequestError):
    """The client's fault: `param` names the offending field ("" when none does)."""

    def __init__(self, message: str, param: str = "", request_id: str = "") -> None:
        super().__init__(message, request_id)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt plus output can never fit the context length or the KV cache."""


class OverloadedError(RequestError):
    """The queue is full; `retry_after_s` says when to try again."""

    def __init__(self, message: str, retry_after_s: float, request_id: str = "") -> None:
        super().__init__(message, request_id)
        self.retry_after_s = retry_after_s


class NotReadyError(RequestError):
    """The model is not loaded on every stage."""


class RequestFailedError(RequestError):
    """An accepted request that ended with finish reason `error`."""


class RequestTimeoutError(RequestFailedError):
    """An accepted request whose `timeout_s` passed before it ended."""
