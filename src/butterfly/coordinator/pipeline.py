"""The coordinator's side of the wires: who joined, connections to them, and the pipeline of a plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from butterfly.communication import Outbox, Transport
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.coordinator.farewells import Farewells
from butterfly.coordinator.refill import Kept
from butterfly.errors import CommunicationError, PeerLostError, ProtocolError
from butterfly.messages import PROTOCOL_VERSION, Dismiss, Introduce, Join, Load, Message, PeerAddress, Step
from butterfly.specs import Plan, StagePlan, StepPlan

_log = logging.getLogger(__name__)

_MANNERS_S = 0.2


class Pipeline:
    """Connections to the workers. Steps go to the first stage, control messages to each."""

    def __init__(self, transport: Transport, address: PeerAddress, send_timeout_s: float) -> None:
        self._transport, self._address = transport, address
        self._send_timeout_s = send_timeout_s
        self._inboxes: dict[str, PeerAddress] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._blobs: dict[str, PeerAddress] = {}  # workers that give bytes to their peers
        self._first_stage = ""
        self._farewells = Farewells()

    def admit(self, join: Join, sender: str) -> bool:
        """Connect to a worker that joined; False when it had joined before (it repeats itself until answered).

        Raises ProtocolError for a worker that speaks another version or claims another's name.
        """
        if join.worker != sender or join.inbox.name != sender:
            raise ProtocolError(f"{sender} tried to join under the name {join.worker}", sender)
        if join.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"{sender} speaks protocol {join.protocol_version}, this coordinator {PROTOCOL_VERSION}: "
                f"install the same version of Butterfly on both",
                sender,
            )
        if self._inboxes.get(sender) == join.inbox:
            return False
        self._close(sender)
        self._farewells.end(sender)
        self._inboxes[sender] = join.inbox
        self._outboxes[sender] = self._transport.connect(join.inbox)
        if join.blobs is not None:
            self._blobs[sender] = join.blobs
        return True

    def forget(self, worker: str, now_s: float) -> None:
        """Hear nothing of this worker any more, until its key is admitted again; nor shall the others.

        It is told so (see `farewells`). `now_s` is on the monotonic clock.
        """
        self._transport.expel(worker)
        if (outbox := self._outboxes.pop(worker, None)) is not None:
            self._farewells.begin(worker, outbox, now_s)
        self._close(worker)
        for other in self._outboxes:
            self.try_send(other, Dismiss(epoch=0, workers=(worker,)))

    def go_on_with_farewells(self, now_s: float) -> None:
        """To be called a few times a second. Never waits."""
        self._farewells.go_on(now_s)

    def _close(self, worker: str) -> None:
        self._inboxes.pop(worker, None)
        self._blobs.pop(worker, None)
        outbox = self._outboxes.pop(worker, None)
        if outbox is not None:
            outbox.close()

    @property
    def addresses(self) -> Mapping[str, PeerAddress]:
        """Where each worker that joined is reached."""
        return self._inboxes

    def load(
        self,
        plan: Plan,
        epoch: int,
        model: PipelineModel,
        config: CoordinatorConfig,
        kept: Kept,
    ) -> None:
        """Tell every worker of the plan which stage it is. Raises CommunicationError naming the worker."""
        self._first_stage = plan.stages[0].worker
        if config.blobs is not None:
            self._introduce(plan)
        for index, stage in enumerate(plan.stages):
            message = self._load_message(plan.stages, index, epoch, model, config)
            keeps_cache = bool(kept.sequences) and stage.worker in kept.workers
            self.send(stage.worker, replace(message, kept=kept.sequences, keeps_cache=keeps_cache))

    def _introduce(self, plan: Plan) -> None:
        """Let everybody give its tensors to those who are about to load."""
        for worker in self._blobs:
            peers = tuple(self._inboxes[stage.worker] for stage in plan.stages if stage.worker != worker)
            self.try_send(worker, Introduce(epoch=0, peers=peers), _MANNERS_S)

    def _load_message(
        self, stages: Sequence[StagePlan], index: int, epoch: int, model: PipelineModel, config: CoordinatorConfig
    ) -> Load:
        stage = stages[index]
        is_last = index == len(stages) - 1
        tensors = model.stage_tensors(stage.start, stage.end, embedding=stage.embedding, head=stage.head)
        return Load(
            epoch=epoch,
            model=model.spec,
            stage=stage,
            tensors=tuple(tensors),
            dtype=config.dtype,
            weights=config.weights,
            previous=self._inboxes[stages[index - 1].worker] if index else self._address,
            next=self._address if is_last else self._inboxes[stages[index + 1].worker],
            max_context=model.spec.max_context,
            sources=self.sources(stage.worker, config.blobs),
        )

    def sources(self, worker: str, home: PeerAddress | None) -> tuple[PeerAddress, ...]:
        """Who may have the bytes of tensors: other workers first, since the coordinator has more to do."""
        if home is None:
            return ()
        return (*(address for name, address in self._blobs.items() if name != worker), home)

    def send_step(self, step: StepPlan, epoch: int, timeout_s: float) -> None:
        """Start a step. Raises PeerTimeoutError naming the first stage."""
        self._outbox(self._first_stage).send(Step(epoch=epoch, plan=step), timeout_s=timeout_s)

    def send(self, worker: str, message: Message) -> None:
        """Send a control message. Raises CommunicationError naming the worker."""
        self._outbox(worker).send(message, timeout_s=self._send_timeout_s)

    def try_send(self, worker: str, message: Message, timeout_s: float = 0.0) -> None:
        """Send if the worker can be reached; silence is judged elsewhere, by its deadline."""
        try:
            self._outbox(worker).send(message, timeout_s=timeout_s)
        except CommunicationError as error:
            _log.debug("%s", error)

    def _outbox(self, worker: str) -> Outbox:
        outbox = self._outboxes.get(worker)
        if outbox is None:
            raise PeerLostError(f"there is no connection to {worker}", worker)
        return outbox

    def close(self) -> None:
        self._farewells.close()
        for outbox in self._outboxes.values():
            outbox.close()
