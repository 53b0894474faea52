"""The life of a worker between its invitation and its end: join, measure, load, run steps, follow the coordinator.

One thread receives, computes and sends; only the heartbeat has a thread of its own. The worker decides
nothing: it is told what to load and what to run, and reports what went wrong.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import msgspec

from butterfly.communication import EpochGate, Received, Transport
from butterfly.communication.services.rare_log import RareLog
from butterfly.errors import ButterflyError, PeerLostError, PeerTimeoutError, ProtocolError, WorkerError
from butterfly.messages import (
    Dismiss,
    Echo,
    Failed,
    Introduce,
    Invitation,
    Leave,
    LinksProbed,
    Load,
    Loaded,
    LoadProgress,
    Message,
    PeerAddress,
    Ping,
    Probe,
    ProbeLinks,
    Profile,
    Profiled,
    Shutdown,
    Step,
)
from butterfly.specs import StageTiming
from butterfly.worker.checks import check_step
from butterfly.worker.deadlines import Deadlines
from butterfly.worker.heartbeat import Heart, Vitals
from butterfly.worker.joining import join_message
from butterfly.worker.onward import Onward
from butterfly.worker.probing import Probing
from butterfly.worker.profiling import Profiler
from butterfly.worker.resources import NodeResources
from butterfly.worker.stage import Stage, StageFactory

logger = logging.getLogger(__name__)

_JOIN_RETRY_S = 1.0
_PROGRESS_INTERVAL_S = 0.1
_OWING_S = 0.002  # between two tries at an answer that cannot leave yet


class Held(NamedTuple):
    """What a worker keeps while it has no coordinator: the next one may want the same layers."""

    stage: Stage | None = None
    last_epoch: int = 0


class _Abandoned(Exception):
    """Raised through long work when its result is not wanted any more."""


class WorkerLoop:
    """One worker's conversation with its coordinator and its neighbours in the pipeline."""

    def __init__(
        self,
        invitation: Invitation,
        transport: Transport,
        stage_factory: StageFactory,
        resources: NodeResources,
        deadlines: Deadlines,
        profiler: Profiler | None = None,
        held: Held = Held(),  # noqa: B008 - frozen
        blobs: PeerAddress | None = None,
    ) -> None:
        self._name = invitation.name
        self._home = invitation.coordinator
        self._transport = transport
        self._stage_factory = stage_factory
        self._profiler = profiler
        self._resources = resources
        self._deadlines = deadlines
        self._inbox = transport.open_inbox()
        transport.admit(self._home.name, self._home.public_key)
        self._coordinator = transport.connect(self._home)
        self._onward = Onward(transport, self._coordinator, deadlines.send_s)
        self._address = msgspec.structs.replace(self._inbox.address, name=self._name)
        self._probing = Probing(transport, self._address, self._coordinator, deadlines.echo_s)
        self._gate = EpochGate()
        self._vitals = Vitals()
        self._load: Load | None = None
        self._stage: Stage | None = None
        # Given up, and what a load was abandoned with: its layers may be wanted again.
        self._previous_stage = held.stage
        self._last_epoch = held.last_epoch
        self._blobs = blobs  # where we give our tensors to peers
        self._heart: Heart | None = None
        self._backlog: deque[Received] = deque()  # arrived during long work
        self._last_heard_s = time.monotonic()  # from the coordinator
        self._last_look_s = 0.0  # when long work was last interrupted
        self._stopping = False
        self._has_failed = False  # and said so
        self._rare_log = RareLog(logger)  # of what peers can cause at will

    def request_stop(self) -> None:
        """Make `join` and `serve` return soon. Callable from any thread and from signal handlers."""
        self._stopping = True
        self._inbox.wake()

    def close(self) -> None:
        """Stop the heartbeat and close all connections."""
        if self._heart is not None:
            self._heart.stop()
        self._onward.close()
        self._probing.close()
        self._coordinator.close()
        self._inbox.close()

    def join(self) -> None:
        """Introduce ourselves until the coordinator answers. Raises PeerTimeoutError at the deadline."""
        deadline_s = time.monotonic() + self._deadlines.join_s
        while not self._stopping:
            remaining_s = min(_JOIN_RETRY_S, deadline_s - time.monotonic())
            if remaining_s <= 0:
                raise PeerTimeoutError(
                    f"could not join {self._home.name} at {self._home.endpoint} within {self._deadlines.join_s:g} s",
                    self._home.name,
                )
            if self._send_join(remaining_s) and self._heard_within(remaining_s):
                beat = self._transport.connect(self._home)
                self._heart = Heart(self._name, beat, self._vitals, self._deadlines.heartbeat_interval_s)
                return

    def serve(self) -> None:
        """Do what the messages say until Shutdown or `request_stop`.

        Raises PeerLostError when the coordinator is silent or gave us up, PeerTimeoutError when it takes no answer.
        """
        while not self._stopping:
            received = self._take()
            if received is None:
                self._check_coordinator()
            elif isinstance(received.message, Shutdown) and received.sender == self._home.name:
                logger.info("shut down by %s %s", received.sender, received.message.reason)
                return
            elif self._is_dismissal(received):
                raise PeerLostError(f"{self._home.name} has given us up", self._home.name)
            else:
                self._handle(received)

    def report(self, reason: str, out_of_memory: bool = False, unreachable_peer: str = "") -> None:
        """Tell the coordinator what went wrong, in one line."""
        self._has_failed = True
        line = " ".join(reason.split()) or "unknown error"
        logger.info("%s", line)  # the coordinator decides how loud this is
        failed = Failed(
            epoch=self._gate.epoch,
            worker=self._name,
            reason=line,
            out_of_memory=out_of_memory,
            unreachable_peer=unreachable_peer,
        )
        self._coordinator.send(failed, timeout_s=self._deadlines.send_s)

    def say_goodbye(self, reason: str) -> None:
        """Tell the coordinator that it need not wait for our silence."""
        with suppress(PeerTimeoutError):
            self._coordinator.send(Leave(epoch=self._gate.epoch, worker=self._name, reason=reason), timeout_s=0.2)

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def give_up(self) -> Held:
        """What the loop that comes after this one begins with. Steps are not run any more."""
        stage, self._stage, self._load = self._stage or self._previous_stage, None, None
        return Held(stage, max(self._gate.epoch, self._last_epoch))

    # ------------------------------------------------------------------------------------ receiving

    def _take(self) -> Received | None:
        if self._backlog:
            return self._backlog.popleft()
        return self._receive(self._deadlines.coordinator_silence_s / 4)

    def _receive(self, timeout_s: float) -> Received | None:
        """None when nothing came, perhaps earlier than at the timeout."""
        self._probing.settle()
        timeout_s = min(timeout_s, _OWING_S) if self._probing.owes else timeout_s
        try:
            received = self._inbox.receive(timeout_s)
        except ProtocolError as error:
            self._refuse(error.peer, error)
            return None
        if received is not None and received.sender == self._home.name:
            self._last_heard_s = time.monotonic()
        return received

    @property
    def _silent_s(self) -> float:
        """Meaningful only when the inbox is empty: a long step of ours is not their silence."""
        return time.monotonic() - self._last_heard_s

    def _check_coordinator(self) -> None:
        if (silent_s := self._silent_s) > self._deadlines.coordinator_silence_s:
            raise PeerLostError(f"{self._home.name} was silent for {silent_s:.0f} s", self._home.name)

    def _is_dismissal(self, received: Received) -> bool:
        """Whether we were given up, and may try again at once.

        Who has failed waits until the silence is noticed: what failed may fail again, and each return is a move.
        """
        message = received.message
        return (
            isinstance(message, Dismiss)
            and received.sender == self._home.name
            and self._name in message.workers
            and not self._has_failed
        )

    def _handle(self, received: Received) -> None:
        message, sender = received.message, received.sender
        try:
            if not self._gate.admits(message, sender):
                logger.info("dropped a %s of epoch %d", type(message).__name__, message.epoch)
            elif isinstance(message, Step):
                self._run_step(received, message)
            elif isinstance(message, Probe):
                self._probing.answer(message, sender)
            elif isinstance(message, Echo):
                self._probing.hear(message, sender, received.received_s)
            elif not (sender == self._home.name and self._obey(message)):
                kind = type(message).__name__
                raise ProtocolError(f"{sender} sent a {kind}, which is not its to send", sender)
        except _Abandoned:
            logger.info("abandoned a %s of epoch %d", type(message).__name__, message.epoch)
        except MemoryError as error:
            self.report(f"{self._name} is out of memory: {error}", out_of_memory=True)
        except PeerTimeoutError as error:
            self.report(str(error), unreachable_peer=error.peer)
        except ButterflyError as error:
            self._refuse(sender, error)

    def _refuse(self, sender: str, error: ButterflyError) -> None:
        """A step or an order may be lost with what this sender got wrong, and nobody else knows.

        Peers that send us neither must not make us confess a failure.
        """
        if sender == self._home.name or (self._load is not None and sender == self._load.previous.name):
            self.report(str(error))
        else:
            self._rare_log.warning(f"refused a message: {error}")

    def _obey(self, message: Message) -> bool:
        """Do what the coordinator says; False when it is nothing that a worker is told."""
        if isinstance(message, Load):
            self._load_stage(message)
        elif isinstance(message, Profile):
            self._measure(message)
        elif isinstance(message, ProbeLinks):
            self._measure_links(message)
        elif isinstance(message, Introduce):
            for peer in message.peers:
                self._admit(peer)
        elif isinstance(message, Dismiss):
            for worker in message.workers:
                self._transport.expel(worker)
                self._probing.dismiss(worker)
        return isinstance(message, Load | Profile | ProbeLinks | Introduce | Dismiss | Ping)

    def _admit(self, peer: PeerAddress) -> None:
        self._transport.admit(peer.name, peer.public_key)
        self._probing.introduce(peer)

    def _attend(self, timeout_s: float = 0.0) -> None:
        """Look up from long work, for a first message until the timeout: answer probes, leave the rest for later.

        Raises _Abandoned when the work is not wanted any more; `serve` finds out why, and says it.
        """
        received = self._receive(timeout_s)
        while received is not None:
            if isinstance(received.message, Probe | Echo):
                self._handle(received)
            elif not isinstance(received.message, Ping):
                self._backlog.append(received)
            received = self._receive(0)
        is_superseded = any(
            (isinstance(waiting.message, Load | Profile | Shutdown) and waiting.sender == self._home.name)
            or self._is_dismissal(waiting)
            for waiting in self._backlog
        )
        if self._stopping or is_superseded or self._silent_s > self._deadlines.coordinator_silence_s:
            raise _Abandoned

    def _is_time_to_look(self) -> bool:
        now_s = time.monotonic()
        is_time = now_s - self._last_look_s >= _PROGRESS_INTERVAL_S
        if is_time:
            self._last_look_s = now_s
        return is_time

    # -------------------------------------------------------------------------------------- joining

    def _send_join(self, timeout_s: float) -> bool:
        join = join_message(self._resources, self._address, self._last_epoch, self._blobs)
        try:
            self._coordinator.send(join, timeout_s=timeout_s)
        except PeerTimeoutError:
            return False
        return True

    def _heard_within(self, timeout_s: float) -> bool:
        received = self._receive(timeout_s)
        if received is None:
            return False
        self._backlog.append(received)
        return True

    # ------------------------------------------------------------------------------------ measuring

    def _measure(self, request: Profile) -> None:
        if self._profiler is None:
            raise WorkerError(f"{self._name} cannot measure what steps take", self._name)
        profile = self._profiler.profile(request, self._look_up)
        profiled = Profiled(epoch=request.epoch, worker=self._name, profile=profile)
        self._coordinator.send(profiled, timeout_s=self._deadlines.send_s)

    def _look_up(self, share: float) -> None:
        if self._is_time_to_look():
            self._attend()

    def _measure_links(self, request: ProbeLinks) -> None:
        links = tuple(self._probing.probe(peer, request.epoch, self._attend) for peer in request.peers)
        probed = LinksProbed(epoch=request.epoch, worker=self._name, links=links)
        self._coordinator.send(probed, timeout_s=self._deadlines.send_s)

    # -------------------------------------------------------------------------------------- loading

    def _load_stage(self, load: Load) -> None:
        self._enter_plan(load)
        self._stage = self._stage_factory.load(load, self._progress, self._previous_stage)
        self._load, self._previous_stage = load, None
        loaded = Loaded(epoch=load.epoch, worker=self._name, weight_bytes=self._stage.weight_bytes)
        self._coordinator.send(loaded, timeout_s=self._deadlines.send_s)

    def _enter_plan(self, load: Load) -> None:
        """Adopt the epoch and the neighbours of a plan. The stage before is given up, but may have what is wanted."""
        if load.stage.worker != self._name:
            raise ProtocolError(
                f"{self._home.name} sent {self._name} the stage of {load.stage.worker}", self._home.name
            )
        self._gate.raise_to(load.epoch)
        self._probing.close()
        self._previous_stage = self._stage or self._previous_stage
        self._load = self._stage = None
        self._vitals.epoch, self._vitals.kv_used_bytes, self._vitals.last_step_id = load.epoch, 0, 0
        if load.previous.name != self._home.name:
            self._admit(load.previous)
        self._onward.enter(load)

    def _progress(self, loaded_bytes: int, total_bytes: int) -> None:
        """Report progress, and look up from the work: is it still wanted?"""
        if not self._is_time_to_look() and loaded_bytes < total_bytes:
            return
        self._attend()
        progress = LoadProgress(
            epoch=self._gate.epoch, worker=self._name, loaded_bytes=loaded_bytes, total_bytes=total_bytes
        )
        with suppress(PeerTimeoutError):  # the next one will do
            self._coordinator.send(progress, timeout_s=0)

    # -------------------------------------------------------------------------------------- running

    def _run_step(self, received: Received, step: Step) -> None:
        load, stage, sender = self._load, self._stage, received.sender
        if load is None or stage is None:
            raise WorkerError(f"{self._name} has no stage for step {step.plan.step_id}", self._name)
        if sender != load.previous.name:
            raise ProtocolError(f"{sender} sent a step that {load.previous.name} should send", sender)
        check_step(step, load, sender)
        started_s = time.monotonic()
        output = stage.run(step.plan, received.payload)
        timing = StageTiming(
            worker=self._name,
            received_s=received.received_s,
            started_s=started_s,
            finished_s=time.monotonic(),
            received_bytes=received.num_bytes,
        )
        self._vitals.kv_used_bytes = stage.kv_used_bytes()
        self._onward.hand_on(load, step, output, (*step.timings, timing), self._attend)
        self._vitals.last_step_id = step.plan.step_id
