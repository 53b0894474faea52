"""The engine behind the worker's Stage protocol: buffers in and out, torch's errors translated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from butterfly.engine import Answer as EngineAnswer
from butterfly.engine import Loading
from butterfly.engine import Stage as EngineStage
from butterfly.errors import WorkerError
from butterfly.messages import Load, PeerAddress, TensorHeader
from butterfly.specs import ComputeDType, StepPlan, TensorEntry, WeightFormat
from butterfly.worker.resources import has_int8_instructions
from butterfly.worker.stage import Answer, HiddenState, Progress, Stage, StageOutput

Locate = Callable[[Sequence[TensorEntry], Sequence[PeerAddress], Progress], Sequence[TensorEntry]]
"""Where the bytes of these tensors are on this machine: fetched from the first of these peers that has them, if need
be. The progress is in bytes of these tensors, and may raise to abandon it."""


class EngineStageFactory:
    """Loads stages onto one device.

    `locate` is asked for the tensors that are really read, when the coordinator names sources for them. Tensors are
    known again as the coordinator describes them, wherever their bytes were found.
    """

    def __init__(self, device: torch.device, locate: Locate | None = None) -> None:
        self._device, self._locate = device, locate

    def load(self, load: Load, progress: Progress, previous: Stage | None = None) -> Stage:
        """Materialise the tensors of this stage. Raises ModelError, WorkerError or MemoryError."""
        check_weights(load.weights, self._device, load.stage.worker)
        held = previous.engine if isinstance(previous, AdaptedStage) else None
        with translated(load.stage.worker):
            engine = EngineStage(
                load.model,
                load.stage,
                load.tensors,
                device=self._device,
                dtype=load.dtype,
                weights=load.weights,
                loading=self._loading(load, progress, held),
            )
        return AdaptedStage(engine, load.dtype)

    def _loading(self, load: Load, progress: Progress, held: EngineStage | None) -> Loading:
        loading = Loading(progress, previous=held, kept=load.kept, keeps_cache=load.keeps_cache)
        if self._locate is None or not load.sources:
            return loading
        locate, halves = self._locate, _Halves(progress)
        return dataclasses.replace(
            loading, progress=halves.converted, locate=lambda tensors: locate(tensors, load.sources, halves.located)
        )


class _Halves:
    """One progress of two: a tensor is half done when its bytes are here."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._held_bytes = self._located_bytes = 0
        self._total_bytes: int | None = None

    def located(self, num_bytes: int, total_bytes: int) -> None:
        """So much of what was missing is on this machine."""
        self._located_bytes = num_bytes
        self._tell(self._held_bytes)

    def converted(self, num_bytes: int, total_bytes: int) -> None:
        """So much is ready. What is so before anything was located was held already."""
        if self._total_bytes is None:
            self._held_bytes, self._total_bytes = num_bytes, total_bytes
        else:
            self._located_bytes = total_bytes - self._held_bytes
        self._tell(num_bytes)

    def _tell(self, converted_bytes: int) -> None:
        self._progress((self._held_bytes + self._located_bytes + converted_bytes) // 2, self._total_bytes or 0)


class AdaptedStage:
    """A stage of the engine that takes and gives buffers."""

    def __init__(self, engine: EngineStage, dtype: ComputeDType) -> None:
        self._engine, self._dtype = engine, dtype

    @property
    def engine(self) -> EngineStage:
        return self._engine

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    def kv_used_bytes(self) -> int:
        return self._engine.kv_used_bytes

    def run(self, plan: StepPlan, hidden: memoryview | None) -> StageOutput:
        with translated(self._engine.plan.worker):
            output = self._engine.run(plan, None if hidden is None else self._to_tensor(hidden))
        if isinstance(output, EngineAnswer):
            return Answer(output.samples, output.scores)
        header = TensorHeader(dtype=self._dtype, shape=tuple(output.shape))
        return HiddenState(header, output.cpu().contiguous().view(torch.uint8).numpy().data)

    def _to_tensor(self, payload: memoryview) -> torch.Tensor:
        """[tokens, hidden_size]; copied, since a received buffer may lie at any address."""
        width = self._engine.model.hidden_size
        if not len(payload):
            return torch.empty(0, width, dtype=self._engine.dtype)
        return torch.frombuffer(payload, dtype=torch.uint8).clone().view(self._engine.dtype).view(-1, width)


def check_weights(weights: WeightFormat, device: torch.device, worker: str) -> None:
    """Raise WorkerError where the weights need instructions that this CPU has not."""
    if weights != "int4" and device.type == "cpu" and not has_int8_instructions():
        raise WorkerError(
            f"the CPU of {worker} has no VNNI instructions, which {weights} weights need: use --weights int4", worker
        )


@contextmanager
def translated(worker: str) -> Iterator[None]:
    """Raise MemoryError or WorkerError for what torch and the system raise."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"{worker} ran out of device memory") from error
    except OSError as error:  # a mapping for the KV cache that the system refuses
        raise MemoryError(f"{worker} could not get memory: {error.strerror}") from error
    except RuntimeError as error:  # what torch raises for nearly everything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "can't allocate memory" in first_line:
            raise MemoryError(f"{worker} ran out of memory: {first_line}") from error
        raise WorkerError(f"{worker} could not compute: {first_line}", worker) from error
