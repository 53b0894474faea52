"""Just enough of a coordinator to drive workers in tests: invite, plan, ping, step, listen."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress

from butterfly.communication import KeyPair, Outbox, Received, Transport
from butterfly.errors import PeerTimeoutError
from butterfly.messages import Invitation, Join, Load, Message, PeerAddress, Ping, Result, Step
from butterfly.specs import Adoption, SamplingSpec, SequenceStep, StagePlan, StepPlan
from tests.multiprocess.arithmetic_worker import model

PATIENCE_S = 20.0
PING_INTERVAL_S = 0.2


class TinyCoordinator:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.inbox = transport.open_inbox()
        self.outboxes: dict[str, Outbox] = {}
        self.addresses: dict[str, PeerAddress] = {}
        self.seen: dict[str, list[Message]] = defaultdict(list)  # by sender, what nobody waited for
        self._last_ping_s = 0.0

    def invite(self, name: str, keys: KeyPair | None = None) -> Invitation:
        keys = keys or KeyPair.generate()
        self.transport.admit(name, keys.public_key)
        return Invitation(
            name=name,
            coordinator=self.inbox.address,
            public_key=keys.public_key,
            secret_key=keys.secret_key,
        )

    def welcome(self, *names: str) -> None:
        """Wait until all of them have joined, and answer each."""
        while not set(names) <= set(self.outboxes):
            received = self.next(Join)
            join = received.message
            assert isinstance(join, Join)
            if join.worker not in self.outboxes:
                assert join.inbox.name == join.worker == received.sender
                self.addresses[join.worker] = join.inbox
                self.outboxes[join.worker] = self.transport.connect(join.inbox)
                self.send(join.worker, Ping(epoch=0))

    def send(self, worker: str, message: Message) -> None:
        self.outboxes[worker].send(message, timeout_s=PATIENCE_S)

    def next(self, *kinds: type[Message]) -> Received:
        """Return the next message of these kinds, pinging meanwhile; keep the others in `seen`."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            self._ping()
            received = self.inbox.receive(PING_INTERVAL_S)
            if received is not None and isinstance(received.message, kinds):
                return received
            if received is not None:
                self.seen[received.sender].append(received.message)
        raise AssertionError(f"no {[kind.__name__ for kind in kinds]} came; seen: {dict(self.seen)}")

    def load(self, epoch: int, *names: str, layers_each: int = 2, model_name: str = "arithmetic") -> None:
        """Send each worker its stage of a pipeline in this order."""
        ring = [self.inbox.address, *(self.addresses[name] for name in names), self.inbox.address]
        for number, name in enumerate(names):
            stage = StagePlan(
                worker=name,
                start=number * layers_each,
                end=(number + 1) * layers_each,
                embedding=number == 0,
                head=number == len(names) - 1,
                weight_bytes=1,
                kv_bytes=1,
                predicted_compute_s=0.0,
            )
            message = Load(
                epoch=epoch,
                model=model(layers_each * len(names), model_name),
                stage=stage,
                tensors=(),
                dtype="float32",
                weights="int4",
                previous=ring[number],
                next=ring[number + 2],
                max_context=4096,
            )
            self.send(name, message)

    def step(
        self, first: str, step_id: int, epoch: int, *sequences: SequenceStep, adopted: tuple[Adoption, ...] = ()
    ) -> None:
        plan = StepPlan(step_id=step_id, slot=0, sequences=sequences, adopted=adopted)
        self.send(first, Step(epoch=epoch, plan=plan))

    def result(self) -> Result:
        result = self.next(Result).message
        assert isinstance(result, Result)
        return result

    def _ping(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_ping_s >= PING_INTERVAL_S:
            self._last_ping_s = now_s
            for outbox in self.outboxes.values():
                with suppress(PeerTimeoutError):  # the test may have killed it
                    outbox.send(Ping(epoch=0), timeout_s=0)


def chunk(sequence_id: int, start: int, token_ids: tuple[int, ...]) -> SequenceStep:
    return SequenceStep(
        sequence_id=sequence_id,
        start=start,
        num_tokens=len(token_ids),
        prompt_length=start + len(token_ids),
        token_ids=token_ids,
        sampling=SamplingSpec(),
    )
