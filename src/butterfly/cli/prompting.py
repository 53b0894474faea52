"""Prompts and answers in the terminal: what `generate` and `chat` share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from butterfly.cli.console import console
from butterfly.embedded import EmbeddedCluster
from butterfly.errors import ContextLengthError, RequestFailedError
from butterfly.specs import Request, SamplingSpec


@dataclass
class Answer:
    """What came back, with the times of this side: seconds since the request was submitted."""

    text: str = ""
    num_prompt_tokens: int = 0
    token_times_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] if self.token_times_s else 0.0

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        times = self.token_times_s
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def make_sampling(temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None) -> SamplingSpec:
    drawn = secrets.randbits(64) if seed is None else seed & (1 << 64) - 1
    return SamplingSpec(seed=drawn, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def check_it_fits(prompt_token_ids: Sequence[int], max_context: int) -> None:
    """Refuse at once what the scheduler would refuse after the model is loaded. Raises ContextLengthError."""
    if len(prompt_token_ids) >= max_context:
        raise ContextLengthError(
            f"the prompt has {len(prompt_token_ids)} tokens, but the context of {max_context} tokens "
            "must hold it and at least one more",
            "prompt",
        )


async def stream_answer(
    cluster: EmbeddedCluster,
    prompt_token_ids: Sequence[int],
    max_tokens: int,
    sampling: SamplingSpec,
    answer: Answer,
) -> None:
    """Generate into `answer` and print as it comes; what was there when something is raised stays in it.

    Raises RequestError when refused, RequestFailedError when it fails.
    """
    request = Request(
        request_id=secrets.token_hex(8),
        prompt_token_ids=tuple(prompt_token_ids),
        max_tokens=max_tokens,
        sampling=sampling,
        stop_token_ids=cluster.model.eos_token_ids,
    )
    text = cluster.model.tokenizer.stream()
    started_s = time.monotonic()
    async for output in await cluster.client.submit(request):
        for token_id in output.token_ids:
            answer.token_times_s.append(time.monotonic() - started_s)
            if token_id not in request.stop_token_ids:
                _print_piece(answer, text.step(token_id))
        if output.finish_reason == "error":
            raise RequestFailedError(output.error, request.request_id)
    _print_piece(answer, text.flush())
    _print_piece(answer, "", end="\n")


def _print_piece(answer: Answer, piece: str, end: str = "") -> None:
    """Past `console.print`, which would expand tabs and drop what it takes for control codes."""
    answer.text += piece
    console.file.write(piece + end)
    console.file.flush()
