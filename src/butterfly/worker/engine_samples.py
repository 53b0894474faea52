"""The engine's samples of layers behind the protocols that `profiling` asks for."""

from __future__ import annotations

import torch

from butterfly.engine import LayerSamples
from butterfly.engine.device import return_free_memory
from butterfly.engine.layer_samples import cut_head
from butterfly.messages import Profile
from butterfly.worker.engine_stage import AdaptedStage, check_weights, translated
from butterfly.worker.stage import Progress

_THIS_NODE = "this worker"


class EngineSampleFactory:
    """Loads layers onto one device, to measure them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def load(self, request: Profile, layer: int, max_head_bytes: int, progress: Progress) -> EngineSample:
        """Raises ModelError, WorkerError or MemoryError."""
        check_weights(request.weights, self._device, _THIS_NODE)
        prefix = f"layers.{layer}."
        of_layer = [entry for entry in request.tensors if entry.name.startswith(prefix)]
        head, factor = cut_head(request.tensors, request.dtype, max_head_bytes) if max_head_bytes else ([], 1.0)
        with translated(_THIS_NODE):
            layers = LayerSamples(
                request.model,
                layer,
                (*of_layer, *(entry for entry in head if not entry.name.startswith("layers."))),
                device=self._device,
                dtype=request.dtype,
                weights=request.weights,
                progress=progress,
            )
        return EngineSample(layers, request, factor)

    def give_back_memory(self) -> None:
        return_free_memory()


class EngineSample:
    def __init__(self, layers: LayerSamples, request: Profile, head_factor: float) -> None:
        self._layers, self._dtype = layers, request.dtype
        self.layer_bytes, self.kv_bytes_per_token = layers.layer_bytes, layers.kv_bytes_per_token
        self.head_factor = head_factor

    def stage(self, num_layers: int, *, head: bool) -> EngineSampleStage:
        with translated(_THIS_NODE):
            return EngineSampleStage(self._layers.stage(num_layers, head=head), self._dtype)


class EngineSampleStage(AdaptedStage):
    def pretend(self, sequence_id: int, num_tokens: int) -> None:
        with translated(_THIS_NODE):
            self._engine.pretend(sequence_id, num_tokens)
