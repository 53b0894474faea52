"""What the worker asks of the thing that computes. The engine's adapter keeps these Protocols."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from butterfly.messages import Load, TensorHeader
from butterfly.specs import SampledToken, ScoredTokens, StepPlan

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int, int], None]  # (loaded_bytes, total_bytes), from the loading thread


class HiddenState(NamedTuple):
    """What a stage without the head hands on: [num_tokens, hidden_size] in the Load's dtype."""

    header: TensorHeader
    payload: Buffer  # C-contiguous; must not change any more, since it may be sent without a copy


class Answer(NamedTuple):
    """What the stage with the head answers to a step."""

    samples: tuple[SampledToken, ...]
    scores: tuple[ScoredTokens, ...] = ()


StageOutput = HiddenState | Answer


class Stage(Protocol):
    """Some layers with their KV cache. Used by one thread."""

    @property
    def weight_bytes(self) -> int:
        """Weights as held in memory."""

    def kv_used_bytes(self) -> int: ...

    def run(self, plan: StepPlan, hidden: memoryview | None) -> StageOutput:
        """Compute one step: hidden states out, or the answer if the stage has the head.

        `hidden` is None on the stage with the embedding; else a writable buffer of exactly
        num_tokens x hidden_size values, whose alignment is not promised. First drops `plan.released`, then
        carries out `plan.adopted`, in order.
        Raises ButterflyError (WorkerError for what has no better kind), or MemoryError.
        """


class StageFactory(Protocol):
    def load(self, load: Load, progress: Progress, previous: Stage | None = None) -> Stage:
        """Materialise the stage, calling `progress` a few times a second at least.

        What `previous` has of it is taken over and counts as loaded; all else of `previous` is freed before anything
        is loaded, and it must not be run any more. If this raises, it may be the `previous` of the next try, which
        then finds what was loaded by this one. The KV cache has what `load.kept` names, in the layers that were taken
        over.

        `progress` may raise to abandon the load (the process is to stop, or a newer plan has come); that
        exception must pass through. Raises ButterflyError, or MemoryError when the memory does not suffice.
        """
