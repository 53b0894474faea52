"""The wire messages between coordinator and workers, and their encoding.

Every message carries the epoch of the plan it belongs to; epoch 0 is before any plan. A tensor
travels as a raw payload frame behind the message that describes it. Nothing is ever unpickled.
"""

from __future__ import annotations

import msgspec

from butterfly.errors import ProtocolError
from butterfly.specs import (
    ComputeDType,
    ComputeProfile,
    KeptSequence,
    LinkSpec,
    ModelSpec,
    SampledToken,
    ScoredTokens,
    Spec,
    StagePlan,
    StageTiming,
    StepPlan,
    TensorEntry,
    WeightFormat,
)

PROTOCOL_VERSION = 6


class PeerAddress(Spec, frozen=True):
    """How to reach a process: CURVE public key (Z85 text) of the one that must answer there."""

    name: str
    endpoint: str
    public_key: str


class Invitation(Spec, frozen=True):
    """What the launcher hands a worker so that it can join. Contains a secret: never logged."""

    name: str  # the worker's name
    coordinator: PeerAddress
    public_key: str  # the worker's own pair, made for this run
    secret_key: str


class TensorHeader(Spec, frozen=True):
    """Describes the payload frame: row-major, little endian."""

    dtype: ComputeDType
    shape: tuple[int, ...]


class _Message(Spec, frozen=True, tag=True):
    epoch: int


# ------------------------------------------------------------------------- worker -> coordinator


class Join(_Message, frozen=True):
    worker: str
    protocol_version: int
    host: str
    pid: int
    device: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    inbox: PeerAddress
    last_epoch: int = 0  # the newest plan that it has heard of: a coordinator that is new goes on from there
    blobs: PeerAddress | None = None  # where it answers FetchBlob, if it does


class Leave(_Message, frozen=True):
    """The worker is told to end by its own machine, and will not answer any more."""

    worker: str
    reason: str


class LoadProgress(_Message, frozen=True):
    worker: str
    loaded_bytes: int
    total_bytes: int


class Loaded(_Message, frozen=True):
    worker: str
    weight_bytes: int  # as held in memory


class Heartbeat(_Message, frozen=True):
    worker: str
    resident_bytes: int
    kv_used_bytes: int
    last_step_id: int = 0  # the newest step that it has handed on, of this epoch; 0: none


class Failed(_Message, frozen=True):
    """The worker could not load or run; `reason` is one line."""

    worker: str
    reason: str
    out_of_memory: bool = False
    unreachable_peer: str = ""  # the next stage, when that does not take what it is sent


class Profiled(_Message, frozen=True):
    """The answer to Profile."""

    worker: str
    profile: ComputeProfile


class LinksProbed(_Message, frozen=True):
    """The answer to ProbeLinks: one link for each peer that was asked for, from this worker to it."""

    worker: str
    links: tuple[LinkSpec, ...]


class Result(_Message, frozen=True):
    """The last stage's answer to a step."""

    step_id: int
    samples: tuple[SampledToken, ...]
    timings: tuple[StageTiming, ...]
    scores: tuple[ScoredTokens, ...] = ()


# ------------------------------------------------------------------------- coordinator -> worker


class Profile(_Message, frozen=True):
    """Measure what steps of this model take here, then answer Profiled (or Failed)."""

    model: ModelSpec
    layers: tuple[int, ...]  # one layer of each kind, in the order of the kinds' numbers
    tensors: tuple[TensorEntry, ...]  # of those layers, norm and lm_head
    dtype: ComputeDType
    weights: WeightFormat
    sources: tuple[PeerAddress, ...] = ()  # as in Load


class Introduce(_Message, frozen=True):
    """Let these workers send to you."""

    peers: tuple[PeerAddress, ...]


class Dismiss(_Message, frozen=True):
    """Let these workers send to you no more. One that is told so of itself was given up, and may knock again."""

    workers: tuple[str, ...]


class ProbeLinks(_Message, frozen=True):
    """Measure the links from you to these peers, to which you have been introduced, then answer LinksProbed."""

    peers: tuple[PeerAddress, ...]


class Load(_Message, frozen=True):
    """Materialise one stage, then answer Loaded (or Failed)."""

    model: ModelSpec
    stage: StagePlan
    tensors: tuple[TensorEntry, ...]  # exactly this stage's
    dtype: ComputeDType
    weights: WeightFormat
    previous: PeerAddress  # who sends steps: the stage before, or the coordinator
    next: PeerAddress  # who gets hidden states, or the coordinator for results
    max_context: int
    sources: tuple[PeerAddress, ...] = ()  # who answers FetchBlob: peers, and last the coordinator, DescribeTensors too
    kept: tuple[KeptSequence, ...] = ()  # sequences that go on
    keeps_cache: bool = False  # whether the worker's last stage has these, as of the plan that was in force until now


class Ping(_Message, frozen=True):
    """Proof that the coordinator lives; also announces the current epoch."""


class Shutdown(_Message, frozen=True):
    reason: str = ""


# ---------------------------------------------------------------------------------- any -> worker


class Probe(_Message, frozen=True):
    """Answer with an Echo at once. The payload, if any, is dropped."""

    number: int
    reply_to: PeerAddress
    payload: TensorHeader | None = None


class Echo(_Message, frozen=True):
    """The answer to a Probe."""

    number: int


# ------------------------------------------------------------------------------ stage -> stage


class Step(_Message, frozen=True):
    """A step on its way down the pipeline; the payload is the hidden state, described by `hidden`."""

    plan: StepPlan
    hidden: TensorHeader | None = None  # None on the way to the first stage
    timings: tuple[StageTiming, ...] = ()


Message = (
    Join
    | Leave
    | LoadProgress
    | Loaded
    | Heartbeat
    | Failed
    | Profiled
    | LinksProbed
    | Result
    | Load
    | Profile
    | Introduce
    | Dismiss
    | ProbeLinks
    | Probe
    | Echo
    | Ping
    | Shutdown
    | Step
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the message as msgpack."""
    return _encoder.encode(message)


def encode_invitation(invitation: Invitation) -> bytes:
    """Return the invitation as one line of JSON. It contains a secret: only for pipes and private files."""
    return msgspec.json.encode(invitation) + b"\n"


def decode(frame: bytes | memoryview, peer: str = "") -> Message:
    """Return the message in `frame`. Raises ProtocolError naming `peer` for anything else."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{peer or 'a peer'} sent a malformed message: {error}", peer) from error
