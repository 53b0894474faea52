"""The engine's samples of layers behind the protocols that `profiling` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from butterfly.engine import LayerSamples
from butterfly.engine.device import return_free_memory
from butterfly.engine.layer_samples import cut_head
from butterfly.messages import Profile
from butterfly.specs import TensorEntry
from butterfly.worker.engine_stage import AdaptedStage, Locate, check_weights, translated
from butterfly.worker.stage import Progress

_THIS_NODE = "this worker"


class EngineSampleFactory:
    """Loads layers onto one device, to measure them."""

    def __init__(self, device: torch.device, locate: Locate | None = None) -> None:
        self._device, self._locate = device, locate

    def load(self, request: Profile, layer: int, max_head_bytes: int, progress: Progress) -> EngineSample:
        """Raises ModelError, WorkerError or MemoryError."""
        check_weights(request.weights, self._device, _THIS_NODE)
        prefix = f"layers.{layer}."
        wanted: Sequence[TensorEntry] = [
            entry
            for entry in request.tensors
            if entry.name.startswith(prefix) or (max_head_bytes and not entry.name.startswith("layers."))
        ]
        if self._locate is not None:
            wanted = self._locate(wanted, request.sources, progress)
        tensors, factor = cut_head(wanted, request.dtype, max_head_bytes) if max_head_bytes else (wanted, 1.0)
        with translated(_THIS_NODE):
            layers = LayerSamples(
                request.model,
                layer,
                tensors,
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
