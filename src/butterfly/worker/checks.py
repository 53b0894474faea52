"""What a step must look like before a stage may see it: the plan said so, the network need not agree."""

from __future__ import annotations

from butterfly.communication import check_hidden
from butterfly.errors import ProtocolError
from butterfly.messages import Load, Step
from butterfly.specs import Adoption, SequenceStep, StepPlan
from butterfly.worker.sampling_checks import problem_of_sampling


def check_step(step: Step, load: Load, sender: str) -> None:
    """Raise ProtocolError naming `sender` unless the stage of `load` can run this step.

    With the embedding: token ids and no hidden state. Without: a hidden state of [num_tokens,
    hidden_size] in the plan's dtype. With the head: sampling and scoring that it can do. Positions lie within
    the context that was planned for. Which sequences have a cache is for the stage to know.
    """
    for adoption in step.plan.adopted:
        _refuse(step, sender, adoption.sequence_id, _problem_of_adoption(adoption, load.max_context))
    if (problem := _problem_of_refill(step.plan, load.model.num_layers)) != "":
        raise ProtocolError(f"{sender} sent step {step.plan.step_id}, which {problem}", sender)
    for sequence in step.plan.sequences:
        _refuse(step, sender, sequence.sequence_id, _problem_of_sequence(sequence, load))
    if not load.stage.embedding:
        refill = step.plan.refill
        num_rows = step.plan.num_tokens if refill is None or refill.enters(load.stage.start) else 0
        check_hidden(step, (num_rows, load.model.hidden_size), load.dtype, sender)
    elif step.hidden is not None:
        raise ProtocolError(f"{sender} sent a hidden state with step {step.plan.step_id}, which starts here", sender)


def _problem_of_refill(plan: StepPlan, num_layers: int) -> str:
    if plan.refill is None:
        return ""
    start, end = plan.refill.start, plan.refill.end
    if not 0 <= start < end <= num_layers:
        return f"refills layers {start}:{end} of {num_layers}"
    asks = any(part.sampling is not None or part.scored_token_ids for part in plan.sequences)
    return "refills, and asks for tokens" if asks else ""


def _refuse(step: Step, sender: str, sequence_id: int, problem: str) -> None:
    if problem:
        raise ProtocolError(f"{sender} sent step {step.plan.step_id} where sequence {sequence_id} {problem}", sender)


def _problem_of_adoption(adoption: Adoption, max_context: int) -> str:
    if adoption.source_id == adoption.sequence_id:
        return "adopts its own cache"
    if not 1 <= adoption.num_tokens <= max_context:
        return f"adopts {adoption.num_tokens} tokens of a context of {max_context}"
    return ""


def _problem_of_sequence(sequence: SequenceStep, load: Load) -> str:
    problem = _problem_of_range(sequence, load.max_context)
    if not problem and load.stage.embedding:
        problem = _problem_of_token_ids(sequence, load.model.vocab_size)
    if not problem and load.stage.head:
        problem = problem_of_sampling(sequence, load.model.vocab_size, load.max_context)
    return problem


def _problem_of_range(sequence: SequenceStep, max_context: int) -> str:
    if sequence.num_tokens < 1 or sequence.start < 0:
        return f"has {sequence.num_tokens} tokens from position {sequence.start}"
    end = sequence.start + sequence.num_tokens
    return f"reaches position {end} of a context of {max_context}" if end > max_context else ""


def _problem_of_token_ids(sequence: SequenceStep, vocab_size: int) -> str:
    if len(sequence.token_ids) != sequence.num_tokens:
        return f"has {len(sequence.token_ids)} token ids for {sequence.num_tokens} positions"
    if min(sequence.token_ids) < 0 or max(sequence.token_ids) >= vocab_size:
        return f"has token ids outside the vocabulary of {vocab_size}"
    return ""
