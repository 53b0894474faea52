"""The real scheduler, planner and cluster state on a virtual clock, with modelled devices, links and faults.

Promises
- `simulate(...)` runs the same cores as the product, so it cannot drift from it; only computing, carrying
  and dying are modelled, by the planner's own cost functions (`partitioning.costs`) and the profiles of the nodes.
- Same input, same report. No time passes while it runs.
- Every request ends exactly once, whoever dies: when a worker with a stage is lost, the cluster state's own decisions
  are carried out, as in the product. Requests are held, a plan is made for those that are left, what is missing is
  loaded, and requests go on from their tokens; where nothing fits, they end with an error.

Must not know: torch, sockets, processes, the time of day.

Modelled: a stage does one step at a time, in order of arrival, and stamps it with virtual times, from which the
scheduler learns as from real ones; what is reused of the KV cache is not computed, but copying it costs its bytes; a
link sends one message at a time, and latencies overlap; a hop costs its link's `software_s` of delay that keeps no
stage busy. A node that the plan leaves out beats and may die, and computes nothing. Loading takes the bytes that a
worker does not hold yet, at one rate; a worker that ended comes back if the config says so. Not modelled: joining,
measuring, planning and the very first loading (no time), the coordinator's own work, stop tokens, deadlines of
requests.

The one-hour change, a failure story: a `FaultSpec` and what the report must say, as one test in
tests/unit/simulation/test_simulator.py. A new kind of fault is one branch of `ModelledWorkers._strike`.
"""

from butterfly.simulation.simulator import simulate
from butterfly.simulation.specs import (
    FaultSpec,
    RequestReport,
    SimulatedRequest,
    SimulationConfig,
    SimulationReport,
    StageReport,
)

__all__ = [
    "FaultSpec",
    "RequestReport",
    "SimulatedRequest",
    "SimulationConfig",
    "SimulationReport",
    "StageReport",
    "simulate",
]
