"""The coordinator's side of the wires: who joined, connections to them, and the pipeline of a plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from butterfly.communication import Outbox, Transport
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.errors import CommunicationError, ProtocolError
from butterfly.messages import PROTOCOL_VERSION, Join, Load, Message, PeerAddress, Step
from butterfly.specs import Plan, StagePlan, StepPlan

_log = logging.getLogger(__name__)


class Pipeline:
    """Connections to the workers. Steps go to the first stage, control messages to each."""

    def __init__(self, transport: Transport, address: PeerAddress, send_timeout_s: float) -> None:
        self._transport, self._address = transport, address
        self._send_timeout_s = send_timeout_s
        self._inboxes: dict[str, PeerAddress] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._first_stage = ""

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
        self._inboxes[sender] = join.inbox
        self._outboxes[sender] = self._transport.connect(join.inbox)
        return True

    @property
    def addresses(self) -> Mapping[str, PeerAddress]:
        """Where each worker that joined is reached."""
        return self._inboxes

    def load(self, plan: Plan, epoch: int, model: PipelineModel, config: CoordinatorConfig) -> None:
        """Tell every worker of the plan which stage it is. Raises CommunicationError naming the worker."""
        self._first_stage = plan.stages[0].worker
        for index, stage in enumerate(plan.stages):
            message = self._load_message(plan.stages, index, epoch, model, config)
            self.send(stage.worker, message)

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
        )

    def send_step(self, step: StepPlan, epoch: int) -> None:
        """Start a step. Raises PeerTimeoutError naming the first stage."""
        self.send(self._first_stage, Step(epoch=epoch, plan=step))

    def send(self, worker: str, message: Message) -> None:
        """Send a control message. Raises PeerTimeoutError naming the worker."""
        self._outboxes[worker].send(message, timeout_s=self._send_timeout_s)

    def try_send(self, worker: str, message: Message, timeout_s: float = 0.2) -> None:
        """Send if the worker can be reached; silence is judged elsewhere, by its deadline."""
        try:
            self._outboxes[worker].send(message, timeout_s=timeout_s)
        except CommunicationError as error:
            _log.debug("%s", error)

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()
