"""The loop: do what was asked, follow the cluster state, schedule, send, receive, update.

One thread owns everything here. Others talk to it through `post` (a function to run on that thread) and read the
last published status.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from butterfly import cluster
from butterfly.cluster import ClusterState, Launcher
from butterfly.communication import EpochGate, Inbox, Received, Transport
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.coordinator.measuring import Measuring, Outgoing
from butterfly.coordinator.pipeline import Pipeline
from butterfly.coordinator.serving import Serving
from butterfly.errors import CommunicationError, NotReadyError, PlanError, ProtocolError
from butterfly.messages import (
    Echo,
    Failed,
    Heartbeat,
    Join,
    LinksProbed,
    Loaded,
    LoadProgress,
    Ping,
    Probe,
    Profile,
    Profiled,
    Result,
    Shutdown,
)
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.partitioning import plan as make_plan
from butterfly.partitioning.token_speed import speed_at
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import ClusterSpec, ClusterStatus, NodeSpec, Plan, StepResult

_log = logging.getLogger(__name__)
_TICK_S = 0.2
BLOCK_SIZE = 16  # tokens


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
    ) -> None:
        self._model, self._launcher, self._config, self._state = model, launcher, config, state
        self._inbox = inbox
        self._pipeline = Pipeline(transport, inbox.address, config.send_timeout_s)
        self._gate = EpochGate()
        self._metrics = metrics
        self.statistics = StepStatistics()
        self._measuring: Measuring | None = None
        self._serving: Serving | None = None
        self._is_issuing = False
        self._plan: Plan | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopped = False
        self._lock = threading.Lock()  # no command may slip in between the last look at them and the end
        self._next_tick_s = 0.0
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
        status, measured = self._status, self.statistics.lone_stream()
        if measured is None or status.plan is None or status.cluster is None:
            return status
        predicted = speed_at(status.plan, self._model.footprint, status.cluster, measured.context)
        return replace(status, measured=measured, predicted=predicted)

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
        if self._serving is None or not self._is_issuing:
            detail = self._status.detail or "the model is still loading"
            raise NotReadyError(f"not ready: {detail}")
        return self._serving

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
        self._next_tick_s = now_s + _TICK_S
        self._notice_exits()
        self._forget_lost_workers()  # those on standby: no action tells of them
        if self._serving is not None:
            self._check_step_deadline(self._serving, now_s)
        if self._serving is not None:
            self._serving.expire(now_s)
            self._serving.check_when_idle()
            self._serving.report_load()
        self._handle(cluster.Ticked(now_s=now_s))

    def _notice_exits(self) -> None:
        for ended in self._launcher.poll():
            self._handle(
                cluster.WorkerExited(
                    now_s=time.monotonic(),
                    worker=ended.name,
                    returncode=ended.returncode,
                    detail=ended.output_tail.rpartition("\n")[2].removeprefix("error: "),
                )
            )

    def _issue_steps(self, serving: Serving) -> None:
        while (step := serving.next_step(time.monotonic())) is not None:
            try:
                self._pipeline.send_step(step, self._gate.epoch)
            except CommunicationError as error:
                self._notice_exits()  # a process that ended says more than a send that failed
                if self._serving is not None:
                    self._worker_failed(error.peer, str(error))
                return

    def _check_step_deadline(self, serving: Serving, now_s: float) -> None:
        late = serving.oldest_step_age_s(now_s)
        if late > self._config.step_timeout_s:
            self._worker_failed(
                self._state.quietest_worker(),
                f"a step did not come back within {self._config.step_timeout_s:g} s, and of the workers this one "
                f"has been silent for longest; if the machine is only slow, raise --step-timeout",
            )

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
        if not self._gate.admits(message, sender):
            self._metrics.message_dropped()
            return
        if isinstance(message, Result):
            self._finish_step(message)
        elif isinstance(message, Heartbeat):
            resident, kv_used = message.resident_bytes, message.kv_used_bytes
            self._metrics.worker_beat(sender, resident_bytes=resident, kv_used_bytes=kv_used)
            self._handle(cluster.WorkerBeat(now_s=now_s, worker=sender, resident_bytes=resident, kv_used_bytes=kv_used))
        elif isinstance(message, Join):
            self._join(message, sender, now_s)
        elif isinstance(message, Profiled | LinksProbed):
            self._take_measured(message, sender)
        elif isinstance(message, Probe):
            self._pipeline.try_send(sender, Echo(epoch=message.epoch, number=message.number))
        elif isinstance(message, LoadProgress):
            self._handle(
                cluster.WorkerLoadProgressed(
                    now_s=now_s, worker=sender, loaded_bytes=message.loaded_bytes, total_bytes=message.total_bytes
                )
            )
        elif isinstance(message, Loaded):
            self._handle(cluster.WorkerLoaded(now_s=now_s, worker=sender, weight_bytes=message.weight_bytes))
        elif isinstance(message, Failed):
            self._worker_failed(sender, message.reason, out_of_memory=message.out_of_memory)
        else:
            raise ProtocolError(f"{sender} sent a {type(message).__name__}, which a coordinator never receives", sender)

    def _join(self, join: Join, sender: str, now_s: float) -> None:
        is_new = self._pipeline.admit(join, sender)
        self._pipeline.try_send(sender, Ping(epoch=self._gate.epoch))
        if is_new:
            node = NodeSpec(
                name=sender,
                memory_bytes=join.memory_bytes,
                memory_bandwidth_bytes_per_s=join.memory_bandwidth_bytes_per_s,
                device=join.device,
            )
            self._handle(cluster.WorkerJoined(now_s=now_s, worker=sender, node=node, host=join.host, pid=join.pid))

    def _take_measured(self, answer: Profiled | LinksProbed, sender: str) -> None:
        measuring = self._measuring
        if measuring is None:
            _log.debug("dropped a late %s of %s", type(answer).__name__, sender)
            return
        try:
            outgoing = measuring.take(answer, sender)
        except ProtocolError as error:  # dropping it would leave everybody waiting
            self._worker_failed(sender, str(error))
            return
        self._go_on_measuring(measuring, outgoing)

    def _finish_step(self, result: Result) -> None:
        if self._serving is not None:
            finished = StepResult(
                step_id=result.step_id, samples=result.samples, timings=result.timings, scores=result.scores
            )
            self._serving.finish_step(finished, time.monotonic())

    # -------------------------------------------------------------------- events and actions

    def _worker_failed(self, worker: str, reason: str, *, out_of_memory: bool = False) -> None:
        self._handle(
            cluster.WorkerFailed(now_s=time.monotonic(), worker=worker, reason=reason, out_of_memory=out_of_memory)
        )

    def _handle(self, event: cluster.Event) -> None:
        """Tell the cluster state, and do what it says, in order."""
        for action in self._state.handle(event):
            self._act(action)
        self._status = self._snapshot()

    def _act(self, action: cluster.Action) -> None:
        _log.debug("action: %s", type(action).__name__)
        if isinstance(action, cluster.PingWorkers):
            for worker in action.workers:
                self._pipeline.try_send(worker, Ping(epoch=action.epoch))
        elif isinstance(action, cluster.MeasureCluster):
            self._measure(action.nodes)
        elif isinstance(action, cluster.MakePlan):
            self._make_plan(action.cluster)
        elif isinstance(action, cluster.LoadStages):
            self._load_stages(action.plan, action.epoch)
        elif isinstance(action, cluster.StartServing):
            self._start_serving()
        elif isinstance(action, cluster.StopServing):
            self._is_issuing = False
        elif isinstance(action, cluster.FailRequests):
            self._measuring = None
            self._end_requests(action.reason)
            self._forget_lost_workers()
        elif isinstance(action, cluster.ShutDownWorkers):
            for worker in action.workers:
                self._pipeline.try_send(worker, Shutdown(epoch=self._gate.epoch, reason=action.reason))

    def _measure(self, nodes: tuple[NodeSpec, ...]) -> None:
        if not self._config.measure:
            self._handle(cluster.ClusterMeasured(now_s=time.monotonic(), cluster=ClusterSpec(nodes=nodes)))
            return
        layers, tensors = self._model.profile_tensors()
        question = Profile(
            epoch=self._gate.epoch,
            model=self._model.spec,
            layers=tuple(layers),
            tensors=tuple(tensors),
            dtype=self._config.dtype,
            weights=self._config.weights,
        )
        hosts = {worker.name: worker.host for worker in self._state.snapshot()}
        measuring = Measuring(nodes, hosts, self._pipeline.addresses, self._inbox.address, question)
        self._measuring = measuring
        self._go_on_measuring(measuring, measuring.start())

    def _go_on_measuring(self, measuring: Measuring, outgoing: Sequence[Outgoing]) -> None:
        """Send what is to be asked next, and tell the cluster state whom we wait for, or what came out."""
        try:
            for worker, message in outgoing:
                self._pipeline.send(worker, message)
        except CommunicationError as error:
            self._worker_failed(error.peer, str(error))
            return
        waiting, now_s = measuring.waiting, time.monotonic()
        if waiting is not None:
            self._handle(cluster.MeasuringProgressed(now_s=now_s, workers=waiting.workers, what=waiting.what))
            return
        self._measuring = None
        self._handle(cluster.ClusterMeasured(now_s=now_s, cluster=measuring.cluster()))

    def _make_plan(self, measured: ClusterSpec) -> None:
        config = self._config
        try:
            plan = make_plan(self._model.footprint, measured, config.workload, config.constraints)
        except PlanError as error:
            self._handle(cluster.PlanRefused(now_s=time.monotonic(), reason=str(error)))
            return
        self._handle(cluster.PlanMade(now_s=time.monotonic(), plan=plan))

    def _load_stages(self, plan: Plan, epoch: int) -> None:
        self._plan = plan
        self._gate.raise_to(epoch)
        self._metrics.epoch_changed(epoch)
        try:
            self._pipeline.load(plan, epoch, self._model, self._config)
        except CommunicationError as error:
            self._worker_failed(error.peer, str(error))

    def _start_serving(self) -> None:
        assert self._plan is not None
        workload, max_context = self._config.workload, self._model.spec.max_context
        # Each sequence may leave a part of its last block empty; without this the full context would not fit.
        rounding = workload.concurrency * (BLOCK_SIZE - 1)
        config = SchedulerConfig(
            num_slots=self._config.num_slots or len(self._plan.stages),
            num_spare_slots=0 if self._config.num_slots else 1,
            max_num_sequences=workload.concurrency,
            kv_capacity_tokens=self._plan.kv_capacity_tokens + rounding,
            block_size=BLOCK_SIZE,
            max_context=max_context,
            max_waiting_tokens=self._config.max_waiting_tokens,
            max_num_batched_tokens=self._config.max_num_batched_tokens,
            prefix_reuse=self._config.prefix_reuse,
            target_ttft_s=self._config.target_ttft_s,
        )
        self._serving = Serving(Scheduler(config), self._metrics, self.statistics)
        self._is_issuing = True

    def _forget_lost_workers(self) -> None:
        for worker in self._state.snapshot():
            if worker.phase == "lost":
                self._metrics.worker_lost(worker.name)

    def _end_requests(self, reason: str) -> None:
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.fail_all(reason, time.monotonic())

    def _stop(self, reason: str) -> None:
        self._handle(cluster.StopRequested(now_s=time.monotonic(), reason=reason))
        self._stopped = True

    def _snapshot(self) -> ClusterStatus:
        counts = self._serving.counts if self._serving else None
        return ClusterStatus(
            phase=self._state.phase,
            epoch=self._gate.epoch,
            model=self._model.name,
            workers=self._state.snapshot(),
            plan=self._plan,
            running_requests=counts.num_running if counts else 0,
            waiting_requests=counts.num_waiting if counts else 0,
            kv_used_tokens=counts.used_tokens if counts else 0,
            kv_kept_tokens=counts.kept_tokens if counts else 0,
            detail=self._state.detail,
            cluster=self._state.cluster,
        )
