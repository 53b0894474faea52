"""A real worker process around a stage that does integer arithmetic: `... arithmetic_worker.py [options]`.

Reads its invitation from standard input like any launched worker. Options are pairs `name=value`:
silence_s and join_s (deadlines), launched (0: as if started by hand).
"""

from __future__ import annotations

import struct
import sys
from contextlib import closing
from dataclasses import dataclass, field

from butterfly.communication import KeyPair, ZmqTransport
from butterfly.errors import WorkerError
from butterfly.messages import Load, TensorHeader
from butterfly.specs import (
    Adoption,
    LayerSpec,
    ModelSpec,
    SampledToken,
    ScoredTokens,
    SequenceStep,
    StepPlan,
    TokenLogprobs,
)
from butterfly.worker import (
    Answer,
    Deadlines,
    HiddenState,
    NodeResources,
    StageOutput,
    hold_lifeline,
    read_invitation,
    run_worker,
)
from butterfly.worker.stage import Progress, Stage

HIDDEN_SIZE = 4
PRIME = 65521  # every value stays exact in float32
WEIGHT_BYTES_PER_LAYER = 1000

POISON_TOKEN, OUT_OF_MEMORY_TOKEN, BUG_TOKEN = 13, 14, 15  # what the first stage chokes on
FAILING_MODEL = "fails to load"


def model(num_layers: int, name: str = "arithmetic") -> ModelSpec:
    return ModelSpec(
        name=name,
        family="arithmetic",
        hidden_size=HIDDEN_SIZE,
        num_heads=1,
        num_kv_heads=1,
        head_dim=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        vocab_size=PRIME,
        max_context=4096,
        norm_eps=1e-6,
        attention_scale=1.0,
        layers=(LayerSpec(),) * num_layers,
        ropes=(),
    )


@dataclass
class ArithmeticStage:
    """Each layer maps x to 3x + (sum of all x of its sequence so far) + its number, modulo a prime.

    The sums are the stage's cache, one for each token: a step that is lost, doubled or out of order changes every
    later token, and so does a cache adopted from the wrong sequence or at the wrong length.
    """

    load: Load
    sums: dict[int, list[list[list[int]]]] = field(default_factory=dict)  # by sequence: [token][layer][column]

    @property
    def weight_bytes(self) -> int:
        return self.load.stage.num_layers * WEIGHT_BYTES_PER_LAYER

    def kv_used_bytes(self) -> int:
        return sum(map(len, self.sums.values()))

    def run(self, plan: StepPlan, hidden: memoryview | None) -> StageOutput:
        self._choke_on(plan)
        for sequence_id in plan.released:
            self.sums.pop(sequence_id, None)
        for adoption in plan.adopted:
            self._adopt(adoption)
        rows = self._embed(plan) if hidden is None else list(struct.iter_unpack(f"<{HIDDEN_SIZE}f", hidden))
        results: list[list[int]] = []
        samples: list[SampledToken] = []
        scores: list[ScoredTokens] = []
        for sequence in plan.sequences:
            if len(self.sums.get(sequence.sequence_id, ())) != sequence.start:
                raise WorkerError(f"sequence {sequence.sequence_id} does not go on at {sequence.start}")
            first = len(results)
            for _ in range(sequence.num_tokens):
                results.append(self._forward(sequence.sequence_id, [int(x) for x in rows[len(results)]]))
            if sequence.scored_token_ids:
                scores.append(_score(sequence, results[first:]))
            if sequence.sampling is not None:
                end = sequence.start + sequence.num_tokens
                token_id = sum(results[-1]) % PRIME
                samples.append(SampledToken(sequence_id=sequence.sequence_id, position=end, token_id=token_id))
        if self.load.stage.head:
            return Answer(tuple(samples), tuple(scores))
        header = TensorHeader(dtype="float32", shape=(plan.num_tokens, HIDDEN_SIZE))
        return HiddenState(header, b"".join(struct.pack(f"<{HIDDEN_SIZE}f", *row) for row in results))

    def _adopt(self, adoption: Adoption) -> None:
        source = self.sums[adoption.source_id] if adoption.keeps_source else self.sums.pop(adoption.source_id)
        self.sums[adoption.sequence_id] = source[: adoption.num_tokens]

    def _embed(self, plan: StepPlan) -> list[tuple[int, ...]]:
        ids = [token_id for sequence in plan.sequences for token_id in sequence.token_ids]
        return [tuple((token_id + column) % PRIME for column in range(HIDDEN_SIZE)) for token_id in ids]

    def _forward(self, sequence_id: int, row: list[int]) -> list[int]:
        before = self.sums.setdefault(sequence_id, [])
        sums = [list(layer) for layer in before[-1]] if before else [[0] * HIDDEN_SIZE for _ in self._layers]
        for layer, layer_sums in zip(self._layers, sums, strict=True):
            for column in range(HIDDEN_SIZE):
                layer_sums[column] = (layer_sums[column] + row[column]) % PRIME
                row[column] = (3 * row[column] + layer_sums[column] + layer) % PRIME
        before.append(sums)
        return row

    @property
    def _layers(self) -> range:
        return range(self.load.stage.start, self.load.stage.end)

    def _choke_on(self, plan: StepPlan) -> None:
        token_ids = {token_id for sequence in plan.sequences for token_id in sequence.token_ids}
        if POISON_TOKEN in token_ids:
            raise WorkerError("the stage\nchoked on a token")
        if OUT_OF_MEMORY_TOKEN in token_ids:
            raise MemoryError("no room for another sequence")
        if BUG_TOKEN in token_ids:
            raise ZeroDivisionError("a bug")


def _score(sequence: SequenceStep, results: list[list[int]]) -> ScoredTokens:
    """The "logprob" of a token is minus the distance to the one that would have been sampled."""
    logprobs = tuple(
        TokenLogprobs(token_id=token_id, logprob=-float(abs(sum(row) % PRIME - token_id)))
        for token_id, row in zip(sequence.scored_token_ids, results, strict=False)
    )
    return ScoredTokens(sequence_id=sequence.sequence_id, start=sequence.start + 1, logprobs=logprobs)


class ArithmeticStageFactory:
    def load(self, load: Load, progress: Progress, previous: Stage | None = None) -> ArithmeticStage:
        if load.model.name == FAILING_MODEL:
            raise MemoryError("the weights do not fit")
        stage = ArithmeticStage(load)
        for layer in range(1, load.stage.num_layers + 1):
            progress(layer * WEIGHT_BYTES_PER_LAYER, stage.weight_bytes)
        return stage


RESOURCES = NodeResources(host="test", device="cpu", memory_bytes=1 << 30, memory_bandwidth_bytes_per_s=1e9)


def main(options: dict[str, str]) -> int:
    invitation = read_invitation("-")
    launched = options.get("launched", "1") == "1"
    if launched:
        hold_lifeline()
    keys = KeyPair(invitation.public_key, invitation.secret_key)
    with closing(ZmqTransport(invitation.name, keys)) as transport:
        return run_worker(
            invitation,
            transport,
            ArithmeticStageFactory(),
            RESOURCES,
            launched=launched,
            deadlines=Deadlines(
                join_s=float(options.get("join_s", "10")),
                coordinator_silence_s=float(options.get("silence_s", "10")),
                send_s=1.0,
                heartbeat_interval_s=0.1,
            ),
        )


if __name__ == "__main__":
    sys.exit(main(dict(option.split("=", 1) for option in sys.argv[1:])))
