"""The engine: one stage of a model on one device.

Promises: `Stage(model, stage_plan, tensors, device, dtype)` materialises exactly the given tensors, and of
a stage before it takes over what is the same, so that only what is missing is read (`Loading`);
`Stage.run(step, hidden) -> hidden or Answer`. Of sequences that are kept through a move (`Loading.kept`) it has what it
had in the layers that it took over; a step with `refill` computes cached tokens once more in those it did not.
A step first drops the sequences it releases, then begins those it adopts with cached tokens of others, then computes;
it may have no tokens at all. In bfloat16 on a CPU a request's
tokens and logprobs have the same bits whatever else is in the batch, however its prompt was chunked, however many
stages there are, and whether its beginning was computed or adopted, prompt or generated.

An `Answer` has a token for each sequence that samples, after bias, penalties and masks, and the logprobs of the tokens
that a sequence scores. Logprobs are those of the model itself: nothing that a request asks for changes them.

Must not know: network, processes, HTTP. It is told which sequences live; it never decides.

For measuring, `LayerSamples` makes stages of one layer many times over; they compute as any stage does.

A new quantised type is one row in `quantization`; a new kernel is one class in `linear` and one row in the
property test of kernels; a new way to change logits is a few lines in `adjustments`. Model families are not here: they
are data (`butterfly.models.families`).
"""

from butterfly.engine.device import resolve_device
from butterfly.engine.head import Answer
from butterfly.engine.layer_samples import LayerSamples
from butterfly.engine.stage import Loading, Stage

__all__ = ["Answer", "LayerSamples", "Loading", "Stage", "resolve_device"]
