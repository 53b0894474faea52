"""Which layers live where. Pure functions: the same input gives the same plan, byte for byte.

Promises
- `plan(model, cluster, workload, constraints) -> Plan` covers every layer exactly once and in order; the first stage
  has the embedding, the last the head; no node is over its memory with weights, the KV cache that the workload asks
  for, and the activations of a step. Which nodes, in which order, with how many layers: what costs least for the
  objective (see `objective`). Leaving a node out and not splitting are plans like any other.
- `Plan.gap` is 0 where it is proven that nothing costs less, which is so for up to about 12 nodes; else it says by how
  much a better plan might.
- A plan is found whenever one is allowed, as far as the solver is exact; otherwise InfeasiblePlanError lists what is
  missing, with figures, and the nearest change that would fit.
- `replicas.plan_replicas` parts nodes and streams into several pipelines where that decodes more tokens per second than
  one. Proven for up to about 7 nodes, else with a gap that is stated.
- A plan carries predicted TPOT, TTFT and throughput, the bound, and what binds. `explain` says the same for people,
  `what_if.what_if` what a change of the cluster would give, `policies.compare` what simple policies would do. `costs`
  is the cost model, shared with simulation; `speed_at` predicts at another context.

Must not know: processes, torch, model names, the clock.

How it fits together: `checks` refuses nonsense; `problem` makes arrays of what was measured and judges placements;
`solve` picks a solver (`uniform`: fill and Held-Karp; `general`: layers that differ, and pins; `search`: many nodes);
`predicting` makes the plan of a placement. For several pipelines `pipeline_speeds` judges single ones,
`fleet_partitions` tries all partitions, `fleet_search` some, and `fleet_bound` says what none exceeds.

The one-hour change, another objective: a branch of `objective.cost`, which only has to grow with both its arguments,
its name in `specs.Objective`, and a row in tests/property/test_solvers.py.
"""

from butterfly.partitioning.explain import explain
from butterfly.partitioning.planner import plan
from butterfly.partitioning.token_speed import speed_at, trip_s

__all__ = ["explain", "plan", "speed_at", "trip_s"]
