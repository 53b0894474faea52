"""What the cluster state remembers of one worker, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

from butterfly.cluster.events import WorkerBeat, WorkerJoined, WorkerLoaded
from butterfly.specs import NodeSpec, Spec, StagePlan, WorkerPhase, WorkerStatus


class Deadlines(Spec, frozen=True):
    """How long a worker may take, and what is done at which intervals, in seconds."""

    join_timeout_s: float = 60.0  # from the start to its Join
    measure_timeout_s: float = 120.0  # for its profile, or for its links
    load_timeout_s: float = 600.0  # from the plan to its Loaded
    heartbeat_timeout_s: float = 3.0  # of silence, while joined, ready or on standby
    busy_timeout_s: float = 20.0  # of silence, while measuring or loading, which leave little time to beat
    ping_interval_s: float = 1.0  # how often workers hear from us
    restart_pause_s: float = 1.0  # before a worker that ended is started again; doubles with each end
    longest_restart_pause_s: float = 30.0
    calm_s: float = 5.0  # after a loss, while others serve: a start takes cores that their prefill may need
    restart_forgiven_s: float = 60.0  # of being ready, after which the pause is the short one again
    forget_lost_s: float = 600.0  # for which a lost worker stays in sight


@dataclass(slots=True)
class Member:
    """One worker. `node` is None until it first joins."""

    name: str
    is_launched: bool = False  # we started it, and may start it again
    phase: WorkerPhase = "starting"
    node: NodeSpec | None = None
    host: str = ""
    pid: int = 0
    started_s: float = 0.0  # while starting: since when
    heard_s: float = 0.0
    measured_since_s: float = 0.0  # while measuring
    loading_since_s: float = 0.0  # while loading
    useful_since_s: float | None = None  # ready or on standby, without having been lost since
    load_fraction: float = 0.0
    resident_bytes: int = 0
    kv_used_bytes: int = 0
    is_leaving: bool = False  # drained: it was told to exit, and no plan may use it
    loss: str = ""  # "worker NAME was ..."; until it joins again
    lost_s: float = 0.0
    restart_s: float | None = None  # when it is to be started again
    next_pause_s: float = 0.0  # before its next restart; 0: the shortest

    @property
    def is_connected(self) -> bool:
        return self.phase not in ("starting", "lost")

    def join(self, event: WorkerJoined) -> None:
        self.phase, self.node = "joined", event.node
        self.host, self.pid, self.heard_s = event.host, event.pid, event.now_s
        self.loss, self.restart_s = "", None
        self.load_fraction, self.resident_bytes, self.kv_used_bytes = 0.0, 0, 0

    def start_measuring(self, now_s: float) -> None:
        self.phase, self.measured_since_s = "measuring", now_s

    def finish_measuring(self, now_s: float) -> None:
        self.phase, self.heard_s = "joined", now_s

    def start_loading(self, now_s: float) -> None:
        self.phase, self.load_fraction, self.loading_since_s = "loading", 0.0, now_s

    def finish_loading(self, event: WorkerLoaded) -> None:
        self.phase, self.load_fraction, self.heard_s = "ready", 1.0, event.now_s

    def stand_by(self, now_s: float) -> None:
        """The plan gives it nothing to load."""
        self.phase, self.load_fraction, self.heard_s = "standby", 1.0, now_s

    def be_useful(self, now_s: float) -> None:
        """The service runs, and this worker is there for it."""
        if self.phase in ("ready", "standby") and self.useful_since_s is None:
            self.useful_since_s = now_s

    def beat(self, event: WorkerBeat) -> None:
        self.heard_s = event.now_s
        self.resident_bytes, self.kv_used_bytes = event.resident_bytes, event.kv_used_bytes

    def lose(self, loss: str, now_s: float, deadlines: Deadlines) -> None:
        was_useful = self.useful_since_s is not None and now_s - self.useful_since_s >= deadlines.restart_forgiven_s
        if was_useful:
            self.next_pause_s = 0.0
        self.phase, self.loss, self.lost_s, self.useful_since_s = "lost", loss, now_s, None
        self.resident_bytes, self.kv_used_bytes = 0, 0

    def plan_restart(self, now_s: float, deadlines: Deadlines) -> None:
        """Its process has ended: start it again after a pause, which is longer each time."""
        pause_s = self.next_pause_s or deadlines.restart_pause_s
        self.restart_s = now_s + pause_s
        self.next_pause_s = min(2 * pause_s, deadlines.longest_restart_pause_s)

    def is_due_to_restart(self, now_s: float, deadlines: Deadlines, *, others_serve: bool) -> bool:
        if self.restart_s is None or now_s < self.restart_s:
            return False
        return not others_serve or now_s - self.lost_s >= deadlines.calm_s

    def restart(self, now_s: float) -> None:
        self.phase, self.started_s, self.restart_s = "starting", now_s, None

    def missed_deadline(self, now_s: float, deadlines: Deadlines, measured_what: str) -> str:
        """Return which deadline the worker has missed, in words; empty when none."""
        if self.phase == "starting" and now_s - self.started_s > deadlines.join_timeout_s:
            return f"did not join within {deadlines.join_timeout_s:g} s"
        if self.phase == "measuring" and now_s - self.measured_since_s > deadlines.measure_timeout_s:
            return f"was not done measuring its {measured_what} within {deadlines.measure_timeout_s:g} s"
        if self.phase == "loading" and now_s - self.loading_since_s > deadlines.load_timeout_s:
            return f"did not load its layers within {deadlines.load_timeout_s:g} s ({self.load_fraction:.0%} done)"
        if not self.is_connected:
            return ""
        is_busy = self.phase in ("measuring", "loading")
        silence_s = deadlines.busy_timeout_s if is_busy else deadlines.heartbeat_timeout_s
        return f"was silent for more than {silence_s:g} s" if now_s - self.heard_s > silence_s else ""

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
            loss=self.loss,
        )
