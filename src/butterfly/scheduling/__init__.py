"""What runs in the next step. Pure: events in, decisions out.

Promises
- `Scheduler.schedule()` returns the next `StepPlan`, or None while enough is under way or nothing is to do;
  `Scheduler.update(StepResult)` returns what the step added to each request.
- Every request that `add()` accepted ends exactly once: `stop`, `length`, `abort` or `error`.
- One counter per request: computed tokens catch up with known ones. That is prefill, chunked prefill, prefix
  reuse, preemption and recovery in one loop.
- A request has at most one decode step in flight. A prompt may have a chunk in every step that is in flight.
- Decode tokens are spread evenly over `num_slots` alternating batches, so that a burst fills all stages, and batches
  even out again as requests end. A spare step may wait in front of the first stage.
- A chunk's length comes from measured stage times: beside decode steps, what readers hardly notice.
- A step is only sent while every token in it has room in the KV cache, counted in blocks. A block is free, owned by
  one running sequence, or owned by one kept sequence.
- A finished sequence's KV cache is kept, least recently used first to go, and taken over or copied by the next
  request with the same beginning (`prefix_reuse`; see `specs.PrefixReuse` for when that could change bits).
- Admission counts with what requests are expected to need. When room runs out all the same, the newest of the lowest
  priority is preempted: it waits again with its tokens and is computed anew.
- Nobody overtakes the request that is first by priority, then by how little its tenant has been served, then by
  arrival; within that order nobody starves.
- Token ids, positions, prompt length, and what sampling must know travel with the step: stages are told, never asked.
- Every sequence id that the stages met is announced as released, or adopted away, exactly once, before anything that
  uses the room, and not before an adoption that needs it. A stage ignores the release of a sequence it does not hold.

Must not know: devices, sockets, tokenizers, the time of day (it arrives as an argument).

A step with no sequences may come when only releases or adoptions are left to announce; it occupies its slot until
`update()` sees its (empty) result. News that rides in a step whose loss is followed by `requeue_all()` or `fail_all()`
is not repeated: stages that live on after a lost step start empty.

Recovery is `hold()`, `kept_for(config)` to say what stages must keep, and `resume(config, refill)` once they are there:
sequences go on, and `refill` says in which layers their cached tokens are computed once more. `requeue_all()`, and
`resume(config)` once there are stages that hold nothing, is the plain form: requests keep their tokens, nothing else.

Results come in the order in which steps were sent, as a pipeline gives them.

The one-hour change, another policy: write a key beside `policy.fair_share`, pass it as
`Scheduler(config, admission_key=...)`, add a row to tests/unit/scheduling/test_policy.py.
"""

from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.kv_blocks import InvariantError
from butterfly.scheduling.policy import AdmissionKey, fair_share, first_come_first_served
from butterfly.scheduling.request_state import TokenMatcher
from butterfly.scheduling.scheduler import Scheduler, SchedulerCounts

__all__ = [
    "AdmissionKey",
    "InvariantError",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerCounts",
    "TokenMatcher",
    "fair_share",
    "first_come_first_served",
]
