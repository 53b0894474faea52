"""Which layers live where. Pure functions: the same input gives the same plan, byte for byte.

Promises
- `plan(model, cluster, workload)` covers every layer exactly once and in order; the first stage has the
  embedding, the last the head; every node has at least one layer and none is over its memory with the KV
  cache that the workload asks for.
- It finds a placement whenever one exists for the given order of nodes, so more memory never hurts.
- Otherwise InfeasiblePlanError lists what is missing, with figures, and the nearest change that would fit.
- A plan carries its predicted time per token, the bound without software, and the constraint that binds.
- `explain(plan, model, cluster)` is the same for people. `costs` is the cost model, shared with simulation.

Must not know: processes, torch, model names.

For now layers go in proportion to memory, in the order given; the objective, speeds and links do not move
a layer yet (they are in the predictions), and activations are not accounted for.

The one-hour change, another placement: a function beside `placement.nearest_fit` from a `MemoryProblem`
to counts, chosen in `planner.plan`, and its row in tests/property/test_planner.py.
"""

from butterfly.partitioning.explain import explain
from butterfly.partitioning.planner import plan

__all__ = ["explain", "plan"]
