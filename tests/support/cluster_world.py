"""A modelled coordinator with its workers, for property tests of the cluster state: who lives, and what was asked.

It carries out every action, at once or when told to, and checks as it goes what each action promises.
"""

from __future__ import annotations

from dataclasses import dataclass

from butterfly.cluster import (
    Action,
    ClusterMeasured,
    ClusterState,
    Deadlines,
    Event,
    FailRequests,
    ForgetWorker,
    HoldRequests,
    LoadStages,
    MakePlan,
    MeasureCluster,
    PingWorkers,
    PlanMade,
    PlanRefused,
    RestartWorker,
    ShutDownWorkers,
    StartServing,
    StopServing,
    Ticked,
    WorkerBeat,
    WorkerExited,
    WorkerJoined,
    WorkerLoaded,
)
from butterfly.specs import ClusterSpec, NodeSpec, Plan, StagePlan

_QUESTIONS = (MeasureCluster, MakePlan, LoadStages)  # may be answered before the list goes on


@dataclass(slots=True)
class Process:
    """A worker's process. Each life has a number, so that nothing is answered in another one's name."""

    runs: bool = True
    is_connected: bool = False
    is_hung: bool = False
    life: int = 0


class ClusterWorld:
    """`needed`: how many workers the model needs. `is_eager`: questions are answered at once, as the product does."""

    def __init__(self, launched: tuple[str, ...], needed: int, *, is_open: bool, is_eager: bool) -> None:
        self.needed, self.is_eager, self.is_open = needed, is_eager, is_open
        self.launched = launched
        self.now_s = 0.0
        self.deadlines = Deadlines()
        self.state = ClusterState(launched, 0.0, self.deadlines, is_open=is_open)
        self.processes = {name: Process() for name in launched}
        self.plan_questions: list[MakePlan] = []
        self.measurement: MeasureCluster | None = None
        self.stale_measurements: list[MeasureCluster] = []
        self.loads: list[tuple[int, str, int]] = []  # epoch, worker, its life
        self.epoch = 0
        self.newest_epoch_heard = 0
        self.holds = False
        self.serves = False
        self.drained: set[str] = set()  # told to exit
        self.taste = 1.0  # of the planner: the larger, the more it gains from each worker

    # ------------------------------------------------------------------------------- events

    def tell(self, event: Event) -> None:
        actions = self.state.handle(event)
        questions = [index for index, action in enumerate(actions) if isinstance(action, _QUESTIONS)]
        assert questions in ([], [len(actions) - 1]), "what is answered at once stands last, alone"
        for action in actions:
            self._act(action)

    def join(self, name: str, last_epoch: int = 0) -> None:
        process = self.processes.setdefault(name, Process())
        process.runs, process.is_connected, process.is_hung = True, True, False
        process.life += 1
        self.newest_epoch_heard = max(self.newest_epoch_heard, last_epoch)
        self.drained.discard(name)
        node = NodeSpec(name=name, memory_bytes=1, memory_bandwidth_bytes_per_s=1.0)
        self.tell(WorkerJoined(now_s=self.now_s, worker=name, node=node, last_epoch=last_epoch))

    def end(self, name: str) -> None:
        """The process ends; a launcher sees it only of those that it started."""
        process = self.processes[name]
        process.runs = process.is_connected = False
        if name in self.launched:
            self.tell(WorkerExited(now_s=self.now_s, worker=name, returncode=1))

    def pass_time(self, seconds: float) -> None:
        """Whoever can beat does so before each tick."""
        for _ in range(max(1, round(seconds))):
            self.now_s += seconds / max(1, round(seconds))
            for name in self.names(is_connected=True):
                if not self.processes[name].is_hung:
                    self.tell(WorkerBeat(now_s=self.now_s, worker=name, resident_bytes=1, kv_used_bytes=1))
            self.tell(Ticked(now_s=self.now_s))

    def names(self, *, is_connected: bool) -> list[str]:
        return [name for name, process in self.processes.items() if process.is_connected == is_connected]

    # ------------------------------------------------------------------------------ answers

    def answer_plan(self) -> None:
        """The oldest question of all."""
        question = self.plan_questions.pop(0)
        names = [node.name for node in question.cluster.nodes if node.name not in question.exclude]
        if len(names) < self.needed:
            self.tell(PlanRefused(now_s=self.now_s, reason=f"{self.needed} workers are needed"))
        else:
            self.tell(PlanMade(now_s=self.now_s, plan=self._plan(names)))

    def answer_measurement(self) -> None:
        question, self.measurement = self.measurement, None
        assert question is not None
        self._tell_measured(question)

    def answer_stale_measurement(self) -> None:
        self._tell_measured(self.stale_measurements.pop())

    def answer_load(self, index: int) -> None:
        """Of an older epoch it is dropped at the border; from a worker that died unseen it never comes."""
        epoch, name, life = self.loads[index % len(self.loads)]
        is_alive = self._is_well(name) and self.processes[name].life == life
        if epoch < self.epoch or is_alive:
            self.loads.remove((epoch, name, life))
        if epoch == self.epoch and is_alive:
            self.tell(WorkerLoaded(now_s=self.now_s, worker=name, weight_bytes=1))

    def answer_everything(self) -> None:
        while self.plan_questions or self.can_measure() or any(self._can_load(load) for load in self.loads):
            while self.plan_questions:
                self.answer_plan()
            if self.can_measure():
                self.answer_measurement()
            for load in list(self.loads):
                if load in self.loads and self._can_load(load):
                    self.answer_load(self.loads.index(load))

    @property
    def is_asked(self) -> bool:
        """Whether a question is open that has not been overtaken."""
        is_loading = any(epoch == self.epoch for epoch, _, _ in self.loads)
        return bool(self.plan_questions) or self.measurement is not None or is_loading

    def can_measure(self) -> bool:
        asked = self.measurement
        return asked is not None and all(self._is_well(node.name) for node in (*asked.nodes, *asked.known.nodes))

    def _can_load(self, load: tuple[int, str, int]) -> bool:
        epoch, name, life = load
        return epoch < self.epoch or (self._is_well(name) and self.processes[name].life == life)

    def _is_well(self, name: str) -> bool:
        return self.processes[name].is_connected and not self.processes[name].is_hung

    def _tell_measured(self, question: MeasureCluster) -> None:
        nodes = (*question.known.nodes, *question.nodes)
        self.tell(ClusterMeasured(now_s=self.now_s, cluster=ClusterSpec(nodes=nodes)))

    def _plan(self, names: list[str]) -> Plan:
        """The first few of them; with a taste of zero more than are needed never pay."""
        chosen = names if self.taste else names[: self.needed]
        stages = tuple(
            StagePlan(
                worker=name,
                start=index,
                end=index + 1,
                embedding=index == 0,
                head=index == len(chosen) - 1,
                weight_bytes=1,
                kv_bytes=1,
                predicted_compute_s=1.0,
            )
            for index, name in enumerate(chosen)
        )
        return Plan(
            stages=stages,
            predicted_tpot_s=1.0,
            bound_tpot_s=1.0,
            binding="",
            kv_capacity_tokens=1,
            cost_s=1.0 / len(chosen) ** self.taste,
        )

    # ------------------------------------------------------------------------------ actions

    def _act(self, action: Action) -> None:
        if isinstance(action, MakePlan):
            self._is_alive([node.name for node in action.cluster.nodes])
            self.plan_questions.append(action)
            if self.is_eager:
                self.answer_plan()
        elif isinstance(action, MeasureCluster):
            self._is_alive([node.name for node in (*action.nodes, *action.known.nodes)])
            self._drop_measurement()
            self.measurement = action
            if self.is_eager and self.can_measure():
                self.answer_measurement()
        elif isinstance(action, LoadStages):
            self._load(action)
        elif isinstance(action, ForgetWorker):
            self.processes[action.worker].is_connected = False
        elif isinstance(action, RestartWorker):
            self._restart(action.worker)
        elif isinstance(action, ShutDownWorkers):
            self._is_alive(list(action.workers))
            self.drained |= set(action.workers)
        elif not isinstance(action, PingWorkers):
            self._act_on_requests(action)

    def _act_on_requests(self, action: Action) -> None:
        if isinstance(action, HoldRequests):
            assert self.serves
            assert not self.holds
            self.serves, self.holds = False, True
            self._drop_measurement()
        elif isinstance(action, StartServing):
            assert not self.serves
            assert action.epoch == self.epoch
            self.serves, self.holds = True, False
        elif isinstance(action, StopServing):
            assert self.serves or self.holds
            self.serves = False
        elif isinstance(action, FailRequests):
            assert not self.serves
            self.holds = False
            self._drop_measurement()

    def _load(self, action: LoadStages) -> None:
        assert action.epoch > max(self.epoch, self.newest_epoch_heard)
        assert not self.serves
        self.epoch = action.epoch
        workers = [stage.worker for stage in action.plan.stages]
        self._is_alive(workers)
        assert not self.drained & set(workers)
        self.loads += [(action.epoch, name, self.processes[name].life) for name in workers]

    def _restart(self, name: str) -> None:
        assert not self.processes[name].runs, "it runs already"
        assert self.state.phase not in ("starting", "measuring", "failed", "stopping")
        self.processes[name].runs = True

    def _drop_measurement(self) -> None:
        if self.measurement is not None:
            self.stale_measurements.append(self.measurement)
        self.measurement = None

    def _is_alive(self, names: list[str]) -> None:
        lost = {worker.name for worker in self.state.snapshot() if worker.phase in ("lost", "starting")}
        assert not lost & set(names), "a worker that is lost has no part in anything"
