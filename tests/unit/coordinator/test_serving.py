"""What the network and impatient users can do to the coordinator's book-keeping."""

from __future__ import annotations

import asyncio

from butterfly.coordinator.request_streams import RequestStream
from butterfly.coordinator.serving import Serving
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import Request, RequestOutput, SampledToken, StepPlan, StepResult

REQUEST = Request(request_id="r", prompt_token_ids=(1, 2, 3), max_tokens=2)


def make_serving() -> Serving:
    config = SchedulerConfig(
        num_slots=1,
        max_num_sequences=1,
        kv_capacity_tokens=64,
        max_context=64,
        max_waiting_tokens=64,
        max_num_batched_tokens=64,
    )
    return Serving(Scheduler(config), Metrics(), StepStatistics())


def answer(step: StepPlan) -> StepResult:
    samples = tuple(  # none in a last step that only carries releases
        SampledToken(sequence_id=sequence.sequence_id, position=sequence.start + sequence.num_tokens, token_id=7)
        for sequence in step.sequences
    )
    return StepResult(step_id=step.step_id, samples=samples)


def test_a_result_that_comes_twice_counts_once() -> None:
    async def story() -> list[RequestOutput]:
        serving = make_serving()
        stream = RequestStream(REQUEST, asyncio.get_running_loop(), 0.0)
        serving.add(stream, 0.0)
        while (step := serving.next_step(1.0)) is not None:
            serving.finish_step(answer(step), 2.0)
            serving.finish_step(answer(step), 3.0)
            serving.settle()
        await stream.wait_accepted()
        return [output async for output in stream.outputs()]

    outputs = asyncio.run(story())
    assert [output.token_ids for output in outputs] == [(7,), (7,)]
    assert outputs[-1].finish_reason == "length"


def test_outputs_for_an_interrupted_reader_are_dropped() -> None:
    """Ctrl-C closes the reader's event loop while the coordinator still has tokens for it."""
    loop = asyncio.new_event_loop()
    serving = make_serving()
    serving.add(RequestStream(REQUEST, loop, 0.0), 0.0)
    loop.close()
    step = serving.next_step(1.0)
    assert step is not None
    serving.finish_step(answer(step), 2.0)
    serving.fail_all("the server was stopped", 3.0)
    assert serving.counts.num_running == 0
