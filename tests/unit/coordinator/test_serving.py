"""What the network and impatient users can do to the coordinator's book-keeping."""

from __future__ import annotations

import asyncio

from butterfly.coordinator.request_streams import RequestStream
from butterfly.coordinator.serving import Serving
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import Request, RequestOutput, SampledToken, StageTiming, StepPlan, StepResult

REQUEST = Request(request_id="r", prompt_token_ids=(1, 2, 3), max_tokens=2)


def make_serving(num_slots: int = 1, statistics: StepStatistics | None = None) -> Serving:
    config = SchedulerConfig(
        num_slots=num_slots,
        max_num_sequences=num_slots,
        kv_capacity_tokens=64,
        max_context=64,
        max_waiting_tokens=64,
        max_num_batched_tokens=64,
    )
    return Serving(Scheduler(config), Metrics(), statistics or StepStatistics())


def answer(step: StepPlan) -> StepResult:
    samples = tuple(  # none in a last step that only carries releases
        SampledToken(sequence_id=sequence.sequence_id, position=sequence.start + sequence.num_tokens, token_id=7)
        for sequence in step.sequences
    )
    timing = StageTiming(worker="w0", received_s=0.0, started_s=0.0, finished_s=0.2, received_bytes=1)
    return StepResult(step_id=step.step_id, samples=samples, timings=(timing,))


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


def serve_together(num_requests: int) -> StepStatistics:
    """Every step leaves as early as it can, takes a second, and comes back in order."""
    loop, statistics = asyncio.new_event_loop(), StepStatistics()
    serving = make_serving(num_requests, statistics)
    for number in range(num_requests):
        request = Request(request_id=f"r{number}", prompt_token_ids=(1, 2, 3, 4), max_tokens=5)
        serving.add(RequestStream(request, loop, 0.0), 0.0)
    loop.close()
    in_flight, now_s = list[StepPlan](), 0.0
    while True:
        while (step := serving.next_step(now_s)) is not None:
            in_flight.append(step)
        if not in_flight:
            return statistics
        now_s += 1.0
        serving.finish_step(answer(in_flight.pop(0)), now_s)
        serving.settle()


def test_generated_tokens_of_a_stream_that_runs_alone_are_measured() -> None:
    measured = serve_together(1).lone_stream()
    assert measured is not None
    assert (measured.num_steps, measured.tpot_s) == (4, 1.0)  # the first token came with the prompt
    assert measured.context == round((4 + 5 + 6 + 7) / 4)


def test_nobody_runs_alone_beside_another() -> None:
    statistics = serve_together(2)
    assert statistics.summary().num_steps > 4
    assert statistics.lone_stream() is None
