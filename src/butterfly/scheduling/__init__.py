"""What runs in the next step. Pure: events in, decisions out.

Promises
- `Scheduler.schedule()` returns the next `StepPlan`, or None while no slot is free or nothing is to do;
  `Scheduler.update(StepResult)` returns what the step added to each request.
- Every request that `add()` accepted ends exactly once: `stop`, `length`, `abort` or `error`.
- One step in flight per slot; a sequence lives in one slot, so it is in at most one step in flight.
- A sequence is only scheduled while blocks for its prompt and all its output are reserved.
- Token ids, positions and prompt length travel with the step: stages are told, never asked.
- Every sequence id that the stages met is announced as released exactly once, and before anything that
  uses the room. A stage ignores the release of a sequence it does not hold.
- Nobody overtakes: the request at the front of the line is the next one admitted.

Must not know: devices, sockets, tokenizers, the time of day (it arrives as an argument).

A step with no sequences may come when only releases are left to announce; it occupies its slot until
`update()` sees its (empty) result. A release that rides in a step whose loss is followed by
`requeue_all()` or `fail_all()` is not repeated: stages that live on after a lost step start empty.

The one-hour change, another policy: write a key beside `policy.first_come_first_served`, pass it as
`Scheduler(config, admission_key=...)`, add a row to tests/unit/scheduling/test_policy.py.
"""

from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.kv_blocks import InvariantError
from butterfly.scheduling.policy import AdmissionKey, first_come_first_served
from butterfly.scheduling.scheduler import Scheduler

__all__ = ["AdmissionKey", "InvariantError", "Scheduler", "SchedulerConfig", "first_come_first_served"]
