"""Samples of layers on a clock of their own: a step takes what a formula says, and computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from butterfly.messages import Profile
from butterfly.specs import LayerSpec, ModelSpec, StepPlan, TensorEntry
from butterfly.worker.profile_times import Reading
from butterfly.worker.profiling import SampleStage
from butterfly.worker.stage import Answer, Progress, StageOutput

HIDDEN_SIZE = 32


@dataclass
class Costs:
    """Seconds of the parts of a step."""

    step_s: float = 0.0005
    decode_s: Callable[[int, int], float] = lambda count, context: 0.001 + 1e-5 * count + 1e-8 * count * context
    prefill_s: Callable[[int, int], float] = lambda count, context: 0.0015 + 2e-5 * count + 1e-7 * context
    head_s: Callable[[int], float] = lambda count: 0.002 + 3e-5 * count


@dataclass
class World:
    """The clock, what happens to a run, and what was run. `scale` slows layers of a higher number down."""

    costs: Costs = field(default_factory=Costs)
    layer_bytes: int = 4 << 20
    kv_bytes_per_token: int = 1024
    head_factor: float = 1.0
    scale: Callable[[int], float] = lambda layer: 1.0
    disturb: Callable[[int, float], float] = lambda number, seconds: seconds  # of the run with this number
    now_s: float = 100.0
    cpu_s: float = 7.0
    num_runs: int = 0
    loads: list[tuple[int, int]] = field(default_factory=list)  # (layer, max_head_bytes)
    num_layers_run: list[int] = field(default_factory=list)
    num_given_back: int = 0

    def clocks(self) -> Reading:
        return Reading(self.now_s, self.cpu_s)

    def load(self, request: Profile, layer: int, max_head_bytes: int, progress: Progress) -> SlowSample:
        progress(0, 1)
        self.loads.append((layer, max_head_bytes))
        return SlowSample(self, layer)

    def give_back_memory(self) -> None:
        self.num_given_back += 1


@dataclass
class SlowSample:
    world: World
    layer: int

    @property
    def layer_bytes(self) -> int:
        return self.world.layer_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return self.world.kv_bytes_per_token

    @property
    def head_factor(self) -> float:
        return self.world.head_factor

    def stage(self, num_layers: int, *, head: bool) -> SampleStage:
        return SlowStage(self.world, self.layer, num_layers, head)


@dataclass
class SlowStage:
    world: World
    layer: int
    num_layers: int
    head: bool
    contexts: dict[int, int] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        return self.num_layers * self.world.layer_bytes

    def kv_used_bytes(self) -> int:
        return 0

    def pretend(self, sequence_id: int, num_tokens: int) -> None:
        self.contexts[sequence_id] = num_tokens

    def run(self, plan: StepPlan, hidden: memoryview | None) -> StageOutput:
        assert hidden is not None
        assert hidden.nbytes == plan.num_tokens * HIDDEN_SIZE * 2
        assert not hidden.readonly
        seconds = self._seconds(plan)
        self.world.cpu_s += 2 * seconds  # two threads
        self.world.now_s += self.world.disturb(self.world.num_runs, seconds)
        self.world.num_runs += 1
        self.world.num_layers_run.append(self.num_layers)
        return Answer(())

    def _seconds(self, plan: StepPlan) -> float:
        costs = self.world.costs
        first = plan.sequences[0]
        assert all(self.contexts[sequence.sequence_id] == sequence.start for sequence in plan.sequences)
        assert all((sequence.sampling is not None) == self.head for sequence in plan.sequences)
        if first.num_prompt_tokens:
            assert (len(plan.sequences), first.num_prompt_tokens) == (1, plan.num_tokens)
            layer_s = costs.prefill_s(plan.num_tokens, first.start)
        else:
            assert plan.num_tokens == len(plan.sequences)
            layer_s = costs.decode_s(plan.num_tokens, first.start)
        head_s = costs.head_s(plan.num_tokens) / self.world.head_factor if self.head else 0.0
        return costs.step_s + self.num_layers * layer_s * self.world.scale(self.layer) + head_s


def request(num_layers: int = 30, max_context: int = 4096, layers: tuple[int, ...] = (0,)) -> Profile:
    model = ModelSpec(
        name="slow",
        family="none",
        hidden_size=HIDDEN_SIZE,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=1000,
        max_context=max_context,
        norm_eps=1e-6,
        attention_scale=1.0,
        layers=(LayerSpec(),) * num_layers,
        ropes=(),
    )
    tensors = tuple(
        TensorEntry(name=f"layers.{layer}.q", storage="Q8_0", shape=(32, 32), num_bytes=1088, file="/a", offset=layer)
        for layer in layers
    )
    return Profile(epoch=3, model=model, layers=layers, tensors=tensors, dtype="bfloat16", weights="int4")
