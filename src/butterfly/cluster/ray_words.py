"""What a RayLauncher and its process that talks to Ray say to each other: lines of JSON through pipes."""

from __future__ import annotations

import msgspec

from butterfly.specs import Spec


class _Words(Spec, frozen=True, tag=True):
    pass


class RayNode(Spec, frozen=True):
    """A node of the Ray cluster that is alive."""

    node_id: str  # Ray's; a node that comes back has another one
    host: str  # its address
    num_cpus: float  # what Ray was told that it has
    num_gpus: float


# ------------------------------------------------------------------------------- launcher -> driver


class StartWorker(_Words, frozen=True):
    """Start this worker on this node."""

    name: str
    node: RayNode
    num_cpus: float
    num_gpus: float
    arguments: tuple[str, ...]  # of the node's own Python
    invitation: str  # one line; contains a secret


class KillWorker(_Words, frozen=True):
    """End this worker by force, if it runs; WorkerOver tells when it has ended."""

    name: str


class StopAll(_Words, frozen=True):
    """End all workers within this time, then end yourself. The end of the pipe means the same."""

    timeout_s: float


# ------------------------------------------------------------------------------- driver -> launcher


class Connected(_Words, frozen=True):
    """Ray answers."""

    ray_version: str


class Refused(_Words, frozen=True):
    """There is no working with Ray, for this reason: the last words."""

    reason: str


class NodesSeen(_Words, frozen=True):
    """All nodes that are alive, when they are others than before."""

    nodes: tuple[RayNode, ...]


class WorkerBegun(_Words, frozen=True):
    """The process of this worker runs."""

    name: str
    pid: int
    niceness: int  # of the process: above 0, others on its node come first


class WorkerOver(_Words, frozen=True):
    """The worker has ended, or could not be started."""

    name: str
    returncode: int | None  # None: nobody saw its end
    output_tail: str


Order = StartWorker | KillWorker | StopAll
Report = Connected | Refused | NodesSeen | WorkerBegun | WorkerOver

_encoder = msgspec.json.Encoder()
order_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
report_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def to_line(words: Order | Report) -> bytes:
    """Return the words as one line, with its end."""
    return _encoder.encode(words) + b"\n"
