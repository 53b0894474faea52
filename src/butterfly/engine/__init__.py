"""The engine: one stage of a model on one device.

Promises: `Stage(model, stage_plan, tensors, device, dtype)` materialises exactly the given tensors;
`Stage.run(step, hidden) -> hidden or samples`. In bfloat16 on a CPU a request's tokens have the same bits whatever
else is in the batch, however its prompt was chunked and however many stages there are.

Must not know: network, processes, HTTP. It is told which sequences live; it never decides.

A new quantised type is one row in `quantization`; a new kernel is one class in `linear` and one row in the
property test of kernels. Model families are not here: they are data (`butterfly.models.families`).
"""

from butterfly.engine.device import resolve_device
from butterfly.engine.stage import Stage

__all__ = ["Stage", "resolve_device"]
