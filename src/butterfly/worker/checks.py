"""What a step must look like before a stage may see it: the plan said so, the network need not agree."""

from __future__ import annotations

from butterfly.communication import check_hidden
from butterfly.errors import ProtocolError
from butterfly.messages import Load, Step
from butterfly.specs import SequenceStep


def check_step(step: Step, load: Load, sender: str) -> None:
    """Raise ProtocolError naming `sender` unless the stage of `load` can run this step.

    With the embedding: token ids and no hidden state. Without: a hidden state of [num_tokens,
    hidden_size] in the plan's dtype. Positions lie within the context that was planned for.
    """
    for sequence in step.plan.sequences:
        problem = _problem_of_range(sequence, load.max_context)
        if not problem and load.stage.embedding:
            problem = _problem_of_token_ids(sequence, load.model.vocab_size)
        if problem:
            raise ProtocolError(
                f"{sender} sent step {step.plan.step_id} where sequence {sequence.sequence_id} {problem}",
                sender,
            )
    if not load.stage.embedding:
        check_hidden(step, load.model.hidden_size, load.dtype, sender)
    elif step.hidden is not None:
        raise ProtocolError(f"{sender} sent a hidden state with step {step.plan.step_id}, which starts here", sender)


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
