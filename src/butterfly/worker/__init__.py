"""The process around a stage: it joins a coordinator, measures itself and its links when it is told to, loads what it
is told, runs steps, hands them on.

Promises: every wait has a deadline; a failure of the stage, of a message or of the next worker is
reported to the coordinator and survived; a step is checked against the plan, in all that it says about tokens,
caches and sampling, before the stage may see it; without a coordinator (silent, gone, its pipe closed) the process
ends by itself; SIGTERM and Shutdown end it cleanly.

Must not know: scheduling, HTTP, model families. It computes nothing: `stage` says what it asks of the
engine.

One-hour change: a new message from the coordinator is one branch in `loop.WorkerLoop._obey` and one test
in tests/unit/worker; what is timed for a profile is `profile_points`, and what follows from it `profile_times`; a
new resource to announce is one field in `resources` and in messages.Join.
"""

from butterfly.worker.deadlines import Deadlines
from butterfly.worker.invitation import read_invitation, write_invitation
from butterfly.worker.lifeline import hold_lifeline
from butterfly.worker.process import run_worker
from butterfly.worker.profiling import Profiler, Report
from butterfly.worker.resources import NodeResources, measure_resources
from butterfly.worker.stage import Answer, HiddenState, Stage, StageFactory, StageOutput

__all__ = [
    "Answer",
    "Deadlines",
    "HiddenState",
    "NodeResources",
    "Profiler",
    "Report",
    "Stage",
    "StageFactory",
    "StageOutput",
    "hold_lifeline",
    "measure_resources",
    "read_invitation",
    "run_worker",
    "write_invitation",
]
