"""One pass through all stages: what is sent down the pipeline, and what comes back."""

from __future__ import annotations

from butterfly.specs.base import Spec
from butterfly.specs.requests import SamplingSpec, TokenLogprobs


class SamplingContext(Spec, frozen=True):
    """What sampling one position needs to know of its sequence: a stage remembers no tokens."""

    output_counts: tuple[tuple[int, int], ...] = ()  # (token id, occurrences in the output), for penalties
    prompt_token_ids: tuple[int, ...] = ()  # each once; for the repetition penalty
    banned_token_ids: tuple[int, ...] = ()  # not sampled here, unless nothing else is allowed
    mask: bytes = b""  # deflated (zlib); bit i%8 of byte i//8 says whether token i is allowed; empty: all are


class SequenceStep(Spec, frozen=True):
    """The part of one sequence in one step: `token_ids` go to positions [start, start + num_tokens)."""

    sequence_id: int
    start: int
    num_tokens: int
    prompt_length: int  # positions below this are prompt tokens, whatever the chunking
    token_ids: tuple[int, ...] = ()  # for the first stage only; stripped after it
    sampling: SamplingSpec | None = None  # set: sample the token after the last position
    context: SamplingContext | None = None  # only with `sampling`, and only when it says something
    scored_token_ids: tuple[int, ...] = ()  # the tokens at start + 1, start + 2, ...: report their logprobs
    num_scored_top: int = 0  # and so many of the likeliest at each of these positions

    @property
    def num_prompt_tokens(self) -> int:
        """How many of its tokens belong to the prompt."""
        return max(0, min(self.num_tokens, self.prompt_length - self.start))


class Adoption(Spec, frozen=True):
    """A new sequence starts with the first `num_tokens` cached tokens of another."""

    sequence_id: int
    source_id: int
    num_tokens: int
    keeps_source: bool  # True: a copy; False: the cache itself, and the source is gone


class LayerRange(Spec, frozen=True):
    """Layers [start, end)."""

    start: int
    end: int

    def enters(self, layer: int) -> bool:
        """Whether computing these layers needs the hidden states before this one."""
        return self.start <= layer < self.end


class KeptSequence(Spec, frozen=True):
    """A sequence that goes on after a move, with what each stage has of it in the layers that it keeps."""

    sequence_id: int
    num_tokens: int  # cached ones


class StepPlan(Spec, frozen=True):
    """One pass through all stages, decided by the scheduler. Sequences are told, never asked for.

    A stage first drops `released`, then carries out `adopted`, in order, then computes.
    """

    step_id: int
    slot: int
    sequences: tuple[SequenceStep, ...]
    released: tuple[int, ...] = ()  # sequence ids whose KV cache is dropped before this step
    adopted: tuple[Adoption, ...] = ()
    refill: LayerRange | None = None
    """Set: cached tokens are computed once more, in these layers only, from the hidden states that were kept at the
    border before them. Nothing is sampled."""

    @property
    def num_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self.sequences)


class SampledToken(Spec, frozen=True):
    sequence_id: int
    position: int  # of the sampled token in its sequence
    token_id: int
    logprobs: TokenLogprobs | None = None


class ScoredTokens(Spec, frozen=True):
    """Logprobs of known tokens: those that a SequenceStep named in `scored_token_ids`."""

    sequence_id: int
    start: int  # position of the first of them: one after the step's own start
    logprobs: tuple[TokenLogprobs, ...]


class StageTiming(Spec, frozen=True):
    """Stamped by a stage on its own monotonic clock: only differences within a stage compare."""

    worker: str
    received_s: float
    started_s: float
    finished_s: float
    received_bytes: int  # the message that brought this step here


class StepResult(Spec, frozen=True):
    step_id: int
    samples: tuple[SampledToken, ...]
    timings: tuple[StageTiming, ...] = ()
    scores: tuple[ScoredTokens, ...] = ()
