"""Prompts and answers in the terminal: what `generate` and `chat` share."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from butterfly.cli.console import console
from butterfly.cli.embedded import EmbeddedCluster
from butterfly.errors import RequestFailedError
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


async def stream_answer(
    cluster: EmbeddedCluster, prompt_token_ids: list[int], max_tokens: int, sampling: SamplingSpec
) -> Answer:
    """Generate and print as it comes. Raises RequestError when refused, RequestFailedError when it fails."""
    request = Request(
        request_id=secrets.token_hex(8),
        prompt_token_ids=tuple(prompt_token_ids),
        max_tokens=max_tokens,
        sampling=sampling,
        stop_token_ids=cluster.model.eos_token_ids,
    )
    answer = Answer(num_prompt_tokens=len(prompt_token_ids))
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
    console.print()
    return answer


def _print_piece(answer: Answer, piece: str) -> None:
    answer.text += piece
    console.print(piece, end="", markup=False, soft_wrap=True)
    console.file.flush()
