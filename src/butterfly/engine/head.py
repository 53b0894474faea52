"""The end of the last stage: from hidden states to sampled tokens, and to logprobs of known ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from butterfly.engine.decoder import RMSNorm
from butterfly.engine.linear import Linear
from butterfly.engine.logprobs import token_logprobs
from butterfly.engine.sampling import sample
from butterfly.specs import SampledToken, ScoredTokens, SequenceStep, StepPlan, TokenLogprobs

_SCORED_ROWS = 32  # logits at a time: with 262,144 tokens in the vocabulary they are 32 MiB


class Answer(NamedTuple):
    """What the last stage says to a step."""

    samples: tuple[SampledToken, ...]  # one for each sequence that asks, in order
    scores: tuple[ScoredTokens, ...]


class Head:
    """Final norm and vocabulary matrix."""

    def __init__(self, norm: RMSNorm, linear: Linear) -> None:
        self._norm, self._linear = norm, linear
        self.num_bytes = norm.num_bytes + linear.num_bytes

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [rows, vocab_size] of hidden states after the last layer."""
        return self._linear(self._norm(hidden)).float()

    def answer(self, step: StepPlan, hidden: torch.Tensor) -> Answer:
        """Sample and score what the step asks for; `hidden` [tokens, hidden_size] are all its tokens.

        Raises ProtocolError for a token mask that cannot be used.
        """
        sampled_rows: list[int] = []
        sampling: list[SequenceStep] = []
        scores: list[ScoredTokens] = []
        first = 0
        for sequence in step.sequences:
            if sequence.scored_token_ids:
                scores.append(self._score(sequence, hidden[first : first + len(sequence.scored_token_ids)]))
            first += sequence.num_tokens
            if sequence.sampling is not None:
                sampled_rows.append(first - 1)
                sampling.append(sequence)
        if not sampling:
            return Answer((), tuple(scores))
        logits_MV = self._logits_array(hidden[sampled_rows])
        samples = tuple(_sample(row, sequence) for row, sequence in zip(logits_MV, sampling, strict=True))
        return Answer(samples, tuple(scores))

    def _score(self, sequence: SequenceStep, hidden: torch.Tensor) -> ScoredTokens:
        """Logprobs of the tokens that follow these rows: a few rows of logits exist at a time."""
        logprobs: list[TokenLogprobs] = []
        for begin in range(0, len(hidden), _SCORED_ROWS):
            logits_MV = self._logits_array(hidden[begin : begin + _SCORED_ROWS])
            token_ids = sequence.scored_token_ids[begin : begin + _SCORED_ROWS]
            logprobs += [
                token_logprobs(row, token_id, sequence.num_scored_top)
                for row, token_id in zip(logits_MV, token_ids, strict=True)
            ]
        return ScoredTokens(sequence_id=sequence.sequence_id, start=sequence.start + 1, logprobs=tuple(logprobs))

    def _logits_array(self, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
        logits_MV: npt.NDArray[np.float32] = self.logits(hidden).cpu().numpy()
        return logits_MV


def _sample(logits_V: npt.NDArray[np.float32], sequence: SequenceStep) -> SampledToken:
    sampling = sequence.sampling
    assert sampling is not None
    position = sequence.start + sequence.num_tokens
    token_id = sample(logits_V, sampling, position, sequence.context)
    logprobs = None
    if sampling.num_logprobs is not None:
        logprobs = token_logprobs(logits_V, token_id, sampling.num_logprobs)
    return SampledToken(sequence_id=sequence.sequence_id, position=position, token_id=token_id, logprobs=logprobs)
