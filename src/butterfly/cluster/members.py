"""What the cluster state remembers of one worker, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

from butterfly.cluster.events import WorkerBeat, WorkerJoined, WorkerLoaded
from butterfly.specs import NodeSpec, Spec, StagePlan, WorkerPhase, WorkerStatus


class Deadlines(Spec, frozen=True):
    """How long a worker may take, in seconds."""

    join_timeout_s: float = 60.0  # from the start to its Join
    measure_timeout_s: float = 120.0  # for its profile, or for its links
    load_timeout_s: float = 600.0  # from the plan to its Loaded
    heartbeat_timeout_s: float = 10.0  # of silence, while joined, ready or on standby
    ping_interval_s: float = 1.0  # how often workers hear from us


@dataclass(slots=True)
class Member:
    """One expected worker. `node` is None until it joins."""

    name: str
    phase: WorkerPhase = "starting"
    node: NodeSpec | None = None
    host: str = ""
    pid: int = 0
    heard_s: float = 0.0
    measured_since_s: float = 0.0  # while measuring
    load_fraction: float = 0.0
    resident_bytes: int = 0
    kv_used_bytes: int = 0
    has_exited: bool = False  # its process is known to be gone; a lost one may only be silent

    @property
    def is_connected(self) -> bool:
        return self.phase not in ("starting", "lost")

    def join(self, event: WorkerJoined) -> None:
        self.phase, self.node = "joined", event.node
        self.host, self.pid, self.heard_s = event.host, event.pid, event.now_s

    def start_measuring(self, now_s: float) -> None:
        self.phase, self.measured_since_s = "measuring", now_s

    def finish_measuring(self, now_s: float) -> None:
        self.phase, self.heard_s = "joined", now_s

    def start_loading(self, now_s: float) -> None:
        self.phase, self.load_fraction, self.heard_s = "loading", 0.0, now_s

    def finish_loading(self, event: WorkerLoaded) -> None:
        self.phase, self.load_fraction, self.heard_s = "ready", 1.0, event.now_s

    def stand_by(self, now_s: float) -> None:
        """The plan gives it nothing to load."""
        self.phase, self.load_fraction, self.heard_s = "standby", 1.0, now_s

    def beat(self, event: WorkerBeat) -> None:
        self.heard_s = event.now_s
        self.resident_bytes, self.kv_used_bytes = event.resident_bytes, event.kv_used_bytes

    def status(self, stage: StagePlan | None) -> WorkerStatus:
        """Return the border form, with what the plan gives this worker."""
        return WorkerStatus(
            name=self.name,
            phase=self.phase,
            start=stage.start if stage else 0,
            end=stage.end if stage else 0,
            embedding=stage is not None and stage.embedding,
            head=stage is not None and stage.head,
            device=self.node.device if self.node else "",
            host=self.host,
            pid=self.pid,
            memory_bytes=self.node.memory_bytes if self.node else 0,
            weight_bytes=stage.weight_bytes if stage else 0,
            resident_bytes=self.resident_bytes,
            kv_used_bytes=self.kv_used_bytes,
            load_fraction=self.load_fraction,
        )
