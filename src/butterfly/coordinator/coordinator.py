"""The loop: do what was asked, follow the cluster state, schedule, send, receive, update.

One thread owns everything here. Others talk to it through `post` (a function to run on that thread) and read the
last published status.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise

from msgspec.structs import replace

from butterfly import cluster
from butterfly.cluster import ClusterState, IllegalTransitionError, Launcher
from butterfly.communication import EpochGate, Inbox, Received, Transport
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel, scheduler_config
from butterfly.coordinator.hearing import Moves, event_of, joined
from butterfly.coordinator.measurement import Measurement
from butterfly.coordinator.pipeline import Pipeline
from butterfly.coordinator.planning import answered
from butterfly.coordinator.refill import Standing
from butterfly.coordinator.reporting import snapshot, with_speeds
from butterfly.coordinator.serving import Serving
from butterfly.coordinator.starting import start_worker
from butterfly.coordinator.suspicion import LateStep, Watch
from butterfly.errors import (
    CommunicationError,
    InvalidRequestError,
    LaunchError,
    NotReadyError,
    PlanError,
    ProtocolError,
)
from butterfly.messages import (
    Echo,
    Failed,
    Heartbeat,
    Join,
    LinksProbed,
    Message,
    Ping,
    Probe,
    Profiled,
    Result,
    Shutdown,
)
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.partitioning import trip_s
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import ClusterStatus, LayerRange, Plan, StepPlan, StepResult

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_STEP_SEND_S = 0.25  # then look around: a process that ended says more than a send that failed
_GREETING_S = 0.2
_CATCH_UP_S = 0.05


class Coordinator:
    """Serves one model over the workers that it expects. `run` blocks until `stop`."""

    def __init__(
        self,
        model: PipelineModel,
        launcher: Launcher,
        transport: Transport,
        inbox: Inbox,
        config: CoordinatorConfig,
        state: ClusterState,
        metrics: Metrics,
        revoked: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        """`revoked` tells of workers that were let in and may not stay, each once."""
        self._model, self._launcher, self._config, self._state = model, launcher, config, state
        self._transport, self._inbox, self._revoked = transport, inbox, revoked
        self._pipeline = Pipeline(transport, inbox.address, config.send_timeout_s)
        self._gate = EpochGate()
        self._metrics = metrics
        self.statistics = StepStatistics()
        self._measurement = Measurement(self._pipeline, inbox.address, model, config, self._handle)
        self._watch = Watch(config.patience)
        self._serving: Serving | None = None  # None: requests are refused
        self._is_issuing = False  # else they are held
        self._unsent: StepPlan | None = None  # a step that the first stage has not taken yet
        self._plan: Plan | None = None
        self._standing = Standing()
        self._refill: LayerRange | None = None  # what the move under way leaves to be computed again; None: all
        self._moves = Moves()
        self._events: deque[cluster.Event] = deque()
        self._is_handling = False
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopped = False
        self._lock = threading.Lock()  # no command may slip in between the last look at them and the end
        self._next_tick_s, self._was_away = 0.0, False
        self._status = self._snapshot()

    # ------------------------------------------------------------------ for other threads

    def post(self, command: Callable[[], None]) -> None:
        """Run `command` on the coordinator's thread soon. Raises NotReadyError when it has stopped."""
        with self._lock:
            if self._stopped:
                raise NotReadyError("the coordinator has stopped")
            self._commands.put(command)
        self._inbox.wake()

    @property
    def vocab_size(self) -> int:
        return self._model.spec.vocab_size

    def status(self) -> ClusterStatus:
        """The last published snapshot, at most a fraction of a second old, with the speed of lone streams till now."""
        status = replace(self._status, now_s=time.monotonic())
        return with_speeds(status, self.statistics.lone_stream(), self._model.footprint)

    def look_for_exits(self) -> None:
        """Some worker's process has ended. Nothing happens when the coordinator has stopped."""
        with suppress(NotReadyError):
            self.post(self._notice_exits)

    def let_in(self, worker: str, public_key: str) -> None:
        """Admit a key that was welcomed under this name. Whoever knocks has no other connection any more.

        The key is admitted after what was known under this name is forgotten: the other way round, a worker that is
        started anew before it is missed would be forgotten with its predecessor.
        """

        def command() -> None:
            if any(
                worker == known.name and known.phase not in ("starting", "lost") for known in self._state.snapshot()
            ):
                self._handle(cluster.WorkerLeft(now_s=time.monotonic(), worker=worker, reason="it knocked again"))
            self._transport.admit(worker, public_key)

        with suppress(NotReadyError):
            self.post(command)

    def stop(self, reason: str = "") -> None:
        """Ask the loop to end: requests fail, workers are told to exit. `run` returns soon after."""
        if not self._stopped:
            self.post(lambda: self._stop(reason))

    # ----------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Serve until stopped. Any error that escapes ends every request before it is raised."""
        try:
            while not self._stopped:
                self._run_commands()
                serving = self._serving
                if serving is not None and self._is_issuing:
                    self._issue_steps(serving)
                    serving.settle()  # while the stages compute what was just sent
                self._tick()
                self._receive(_TICK_S)
        finally:
            with self._lock:
                self._stopped = True
            try:
                self._end_requests("the server stopped")
            finally:
                self._run_commands()  # whoever still waits for an answer gets it
                self._pipeline.close()

    def serving(self) -> Serving:
        """The scheduler and its requests. Raises NotReadyError with the reason. Coordinator's thread only."""
        if self._serving is None:
            detail = self._status.detail or "the model is still loading"
            raise NotReadyError(f"not ready: {detail}")
        return self._serving

    def drain(self, worker: str) -> None:
        """Coordinator's thread only. Raises InvalidRequestError or PlanError."""
        try:
            self._handle(cluster.DrainRequested(now_s=time.monotonic(), worker=worker))
        except ValueError as error:
            raise InvalidRequestError(str(error), "worker") from error
        if refusal := self._state.drain_refusal(worker):
            raise PlanError(refusal)

    def _run_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_tick_s:
            return
        self._notice_exits()
        was_away, self._was_away = now_s > self._next_tick_s + _TICK_S and not self._was_away, False
        if was_away:  # planning perhaps: first hear what came meanwhile, once
            self._was_away, self._next_tick_s = True, now_s + _CATCH_UP_S
            return
        self._next_tick_s = now_s + _TICK_S
        if revoked := self._revoked():
            self._run_commands()  # a key that was welcomed just before must not be let in after it is forgotten
            for worker in revoked:
                self._pipeline.forget(worker, now_s)
                self._worker_failed(worker, "its key was revoked")
        self._pipeline.go_on_with_farewells(now_s)
        if self._serving is not None and self._is_issuing:
            self._check_late_step(self._serving, now_s)
        if self._serving is not None:
            self._serving.expire(now_s)
            self._serving.check_when_idle()
            self._serving.report_load()
        refill_s = self._serving.refill_s if self._serving is not None else 0.0
        self._handle(cluster.Ticked(now_s=now_s, refill_s=refill_s))

    def _notice_exits(self) -> None:
        for ended in self._launcher.poll():
            last_line = ended.output_tail.rpartition("\n")[2].removeprefix("error: ")
            detail = last_line if (ended.returncode or 0) >= 0 else ""  # who is killed by a signal does not say why
            now_s = time.monotonic()
            self._handle(
                cluster.WorkerExited(now_s=now_s, worker=ended.name, returncode=ended.returncode, detail=detail)
            )

    def _issue_steps(self, serving: Serving) -> None:
        while self._is_issuing and (step := self._unsent or serving.next_step(time.monotonic())) is not None:
            self._unsent = step
            try:
                self._pipeline.send_step(step, self._gate.epoch, _STEP_SEND_S)
            except CommunicationError as error:
                self._notice_exits()
                if self._is_issuing and serving.stalled_s(time.monotonic()) > self._config.send_timeout_s:
                    self._worker_failed(error.peer, str(error))
                return
            self._unsent = None

    def _check_late_step(self, serving: Serving, now_s: float) -> None:
        step, stalled_s = serving.oldest_step(), serving.stalled_s(now_s)
        measured = self._state.cluster
        if step is None or measured is None or self._plan is None or stalled_s < self._config.patience.late_s:
            return
        expected_s = trip_s(self._plan, self._model.footprint, measured, max(1, step.num_tokens))
        suspect = self._watch.suspect(self._staged, now_s, LateStep(step.step_id, stalled_s, expected_s))
        if suspect is not None:
            self._worker_failed(suspect.worker, suspect.reason)

    def _receive(self, timeout_s: float) -> None:
        try:
            received = self._inbox.receive(timeout_s)
            while received is not None:
                self._take(received)
                if self._serving is not None and self._serving.has_free_slot:
                    return  # feed the pipeline before reading on
                received = self._inbox.receive_nowait()
        except CommunicationError as error:
            _log.warning("dropped a message: %s", error)

    # -------------------------------------------------------------------------- messages in

    def _take(self, received: Received) -> None:
        message, sender, now_s = received.message, received.sender, received.received_s
        is_newcomer = isinstance(message, Failed) and sender not in self._staged  # it knows no plan that could be old
        if not is_newcomer and not self._gate.admits(message, sender):
            self._metrics.message_dropped()
            return
        try:
            self._act_on(message, sender, now_s)
        except IllegalTransitionError as error:  # a worker that keeps to the protocol causes none
            _log.error("%s", error)
            self._worker_failed(sender, f"sent a {type(message).__name__} out of turn")

    def _act_on(self, message: Message, sender: str, now_s: float) -> None:
        if isinstance(message, Result):
            self._finish_step(message, sender)
            return
        if isinstance(message, Heartbeat):
            self._watch.hear(sender, now_s, message.last_step_id if message.epoch == self._gate.epoch else 0)
            self._metrics.worker_beat(
                sender, resident_bytes=message.resident_bytes, kv_used_bytes=message.kv_used_bytes
            )
        if (event := event_of(message, sender, now_s)) is not None:
            self._handle(event)
        elif isinstance(message, Join):
            self._join(message, sender, now_s)
        elif isinstance(message, Profiled | LinksProbed):
            self._measurement.take(message, sender)
        elif isinstance(message, Probe):
            self._pipeline.try_send(sender, Echo(epoch=message.epoch, number=message.number))
        elif isinstance(message, Failed):
            self._take_failure(message, sender)
        else:
            raise ProtocolError(f"{sender} sent a {type(message).__name__}, which a coordinator never receives", sender)

    def _join(self, join: Join, sender: str, now_s: float) -> None:
        event = joined(join, sender, now_s)
        is_new = self._pipeline.admit(join, sender)
        self._pipeline.try_send(sender, Ping(epoch=self._gate.epoch), _GREETING_S)
        if is_new:
            self._standing.forget(sender)  # if it was here before, it has begun anew
            self._watch.hear(sender, now_s)
            self._handle(event)

    def _take_failure(self, failed: Failed, sender: str) -> None:
        """A stage that cannot hand on says so: the next one is more likely to be gone. Others can accuse nobody."""
        if (sender, failed.unreachable_peer) in pairwise(self._staged):
            self._worker_failed(failed.unreachable_peer, f"does not take what {sender} sends: {failed.reason}")
        else:
            self._worker_failed(sender, failed.reason, out_of_memory=failed.out_of_memory)

    @property
    def _staged(self) -> list[str]:
        """The workers of the plan, in pipeline order."""
        return [stage.worker for stage in self._plan.stages] if self._plan else []

    def _finish_step(self, result: Result, sender: str) -> None:
        if not self._staged or sender != self._staged[-1]:
            raise ProtocolError(f"{sender} sent the result of a step, which the last stage sends", sender)
        if self._serving is not None:
            finished = StepResult(
                step_id=result.step_id, samples=result.samples, timings=result.timings, scores=result.scores
            )
            self._serving.finish_step(finished, time.monotonic())

    # -------------------------------------------------------------------- events and actions

    def _worker_failed(self, worker: str, reason: str, *, out_of_memory: bool = False) -> None:
        if all(worker != known.name for known in self._state.snapshot()):
            return
        self._handle(
            cluster.WorkerFailed(now_s=time.monotonic(), worker=worker, reason=reason, out_of_memory=out_of_memory)
        )

    def _handle(self, event: cluster.Event) -> None:
        """Tell the cluster state, and do what it says, in order. What that causes comes after all of it."""
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                for action in self._state.handle(self._events.popleft()):
                    self._act(action)
        finally:
            self._is_handling = False
            self._events.clear()
        self._status = self._snapshot()

    def _act(self, action: cluster.Action) -> None:
        _log.debug("action: %s", type(action).__name__)
        match action:
            case cluster.PingWorkers():
                for worker in action.workers:
                    self._pipeline.try_send(worker, Ping(epoch=action.epoch))
            case cluster.MeasureCluster():
                hosts = {worker.name: worker.host for worker in self._state.snapshot()}
                self._measurement.begin(action, hosts, self._gate.epoch)
            case cluster.MakePlan():
                self._handle(answered(action, self._model.footprint, self._config))
            case cluster.LoadStages():
                self._load_stages(action.plan, action.epoch)
            case cluster.StartServing():
                self._start_serving()
            case cluster.HoldRequests():
                self._hold(action.reason)
            case cluster.StopServing():
                self._is_issuing, self._unsent = False, None
            case cluster.FailRequests():
                self._measurement.stop()
                self._end_requests(action.reason)
            case cluster.ShutDownWorkers():
                for worker in action.workers:
                    self._pipeline.try_send(worker, Shutdown(epoch=self._gate.epoch, reason=action.reason), _GREETING_S)
            case cluster.RestartWorker():
                self._restart(action.worker)
            case cluster.ForgetWorker():
                self._forget(action.worker)

    def _hold(self, reason: str) -> None:
        _log.warning("%s", reason)
        self._is_issuing, self._unsent = False, None
        if self._serving is not None:
            self._serving.hold()

    def _restart(self, worker: str) -> None:
        _log.warning("starting %s anew", worker)
        try:
            start_worker(worker, self._inbox.address, self._transport, self._launcher)
        except LaunchError as error:
            now_s = time.monotonic()
            self._handle(cluster.WorkerExited(now_s=now_s, worker=worker, returncode=None, detail=str(error)))

    def _forget(self, worker: str) -> None:
        """A lost worker that we started may only hang: its process must not keep the memory."""
        self._measurement.forget(worker)
        self._watch.forget(worker)
        self._standing.forget(worker)
        self._pipeline.forget(worker, time.monotonic())
        self._metrics.worker_lost(worker)
        self._launcher.kill(worker)

    def _load_stages(self, plan: Plan, epoch: int) -> None:
        self._plan = plan
        self._gate.raise_to(epoch)
        self._metrics.epoch_changed(epoch)
        kept = self._standing.move(plan)
        if self._serving and kept.refill:
            kept = kept._replace(sequences=self._serving.kept_for(self._scheduler_config(plan)))
        self._refill = kept.refill if kept.sequences else None
        try:
            self._pipeline.load(plan, epoch, self._model, self._config, kept)
        except CommunicationError as error:
            self._worker_failed(error.peer, str(error))

    def _start_serving(self) -> None:
        assert self._plan is not None
        config = self._scheduler_config(self._plan)
        if self._serving is None:
            self._serving = Serving(Scheduler(config), self._metrics, self.statistics)
        else:
            self._serving.resume(config, self._refill, time.monotonic())
        self._standing.serve(self._plan)
        self._is_issuing = True

    def _scheduler_config(self, plan: Plan) -> SchedulerConfig:
        return scheduler_config(self._config, plan, self._model.spec.max_context)

    def _end_requests(self, reason: str) -> None:
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.fail_all(reason, time.monotonic())

    def _stop(self, reason: str) -> None:
        self._handle(cluster.StopRequested(now_s=time.monotonic(), reason=reason))
        self._stopped = True

    def _snapshot(self) -> ClusterStatus:
        counts = self._serving.counts if self._serving else None
        moves = self._moves.note(self._state.recovery)
        return snapshot(self._state, self._model.name, self._gate.epoch, counts, moves)
