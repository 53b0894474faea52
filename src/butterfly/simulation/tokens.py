"""Which tokens a simulated request has: as many as it says, and equal wherever conversations are to share them.

A token is a function of its conversation and its position, so a later request of a conversation begins with all
that was said before, answers included. The seed carries the conversation to where the answers are sampled.
"""

from __future__ import annotations

from zlib import crc32

from butterfly.simulation.specs import SimulatedRequest
from butterfly.specs import Request, SampledToken, SamplingSpec, StepPlan


def make_request(arrival: SimulatedRequest) -> Request:
    """Return the request as the scheduler sees it."""
    seed = crc32((arrival.conversation or f"only {arrival.request_id}").encode())
    shared = [_token(0, position) for position in range(min(arrival.num_shared_tokens, arrival.num_prompt_tokens))]
    own = [_token(seed, position) for position in range(len(shared), arrival.num_prompt_tokens)]
    return Request(
        request_id=arrival.request_id,
        prompt_token_ids=(*shared, *own),
        max_tokens=arrival.max_tokens,
        sampling=SamplingSpec(temperature=0.0, seed=seed),
    )


def sampled_tokens(step: StepPlan) -> tuple[SampledToken, ...]:
    """Return what the last stage samples for a step."""
    return tuple(
        SampledToken(
            sequence_id=part.sequence_id,
            position=part.start + part.num_tokens,
            token_id=_token(part.sampling.seed, part.start + part.num_tokens),
        )
        for part in step.sequences
        if part.sampling is not None
    )


def _token(seed: int, position: int) -> int:
    return (seed + position) % 2**31
