"""What a step brought, matched with what it was to bring."""

from __future__ import annotations

from butterfly.errors import ProtocolError
from butterfly.specs import SampledToken, ScoredTokens, StepPlan, StepResult


def match_samples(plan: StepPlan, result: StepResult) -> dict[int, SampledToken]:
    """Return the samples by sequence id. Raises ProtocolError unless they are what `plan` asks for."""
    wanted = sorted((s.sequence_id, s.start + s.num_tokens) for s in plan.sequences if s.sampling is not None)
    got = sorted((sample.sequence_id, sample.position) for sample in result.samples)
    if wanted != got:
        raise ProtocolError(f"step {plan.step_id} wants samples for (sequence, position) {wanted} but brought {got}")
    return {sample.sequence_id: sample for sample in result.samples}


def match_scores(plan: StepPlan, result: StepResult) -> dict[int, ScoredTokens]:
    """Return the scores by sequence id. Raises ProtocolError unless they are what `plan` asks for."""
    wanted = sorted((s.sequence_id, s.start + 1, len(s.scored_token_ids)) for s in plan.sequences if s.scored_token_ids)
    got = sorted((scores.sequence_id, scores.start, len(scores.logprobs)) for scores in result.scores)
    if wanted != got:
        raise ProtocolError(f"step {plan.step_id} wants scores for (sequence, start, count) {wanted} but brought {got}")
    return {scores.sequence_id: scores for scores in result.scores}
