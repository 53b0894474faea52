"""A coordinator and its workers on a virtual clock, around the real scheduler, planner and cluster state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from butterfly import cluster as world
from butterfly.errors import RequestError
from butterfly.partitioning import costs, plan
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.simulation.devices import ModelledLink, ModelledStage
from butterfly.simulation.ledger import Ledger
from butterfly.simulation.specs import (
    FaultSpec,
    SimulatedRequest,
    SimulationConfig,
    SimulationReport,
    StageReport,
)
from butterfly.simulation.tokens import make_request, sampled_tokens
from butterfly.simulation.virtual_clock import VirtualClock
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, StageTiming, StepPlan, StepResult, WorkloadSpec


def simulate(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    arrivals: Sequence[SimulatedRequest],
    config: SimulationConfig | None = None,
) -> SimulationReport:
    """Serve `arrivals` until each has ended, and report. Same input, same report.

    Joining and loading take no time. Raises InfeasiblePlanError when the model does not fit, ValueError
    for two requests with one id or a fault of an unknown worker, TimeoutError when a request is still
    open at the time limit.
    """
    config = config or SimulationConfig()
    simulation = _Simulation(model, cluster, workload, tuple(arrivals), config)
    simulation.start()
    return simulation.run()


class _Simulation:
    def __init__(
        self,
        model: ModelFootprint,
        cluster: ClusterSpec,
        workload: WorkloadSpec,
        arrivals: tuple[SimulatedRequest, ...],
        config: SimulationConfig,
    ) -> None:
        self._model, self._cluster, self._workload = model, cluster, workload
        self._arrivals, self._config = arrivals, config
        self._clock = VirtualClock()
        self._ledger = Ledger(arrivals)
        self._state = world.ClusterState([node.name for node in cluster.nodes], 0.0, config.deadlines)
        self._serving = False
        self._plan = plan(model, cluster, workload, config.constraints)
        self._scheduler = Scheduler(_scheduler_config(self._plan, model, config))
        nodes = {node.name: node for node in cluster.nodes}
        self._stages = [
            ModelledStage(stage, nodes[stage.worker], model, config.rows_per_weight_pass) for stage in self._plan.stages
        ]
        self._dead: set[str] = set()  # names of nodes
        self._links = [ModelledLink(link) for link, _ in costs.trip_links(self._plan, model, cluster)]

    def start(self) -> None:
        """Let every worker join and load, then book what is to come from outside."""
        names = [node.name for node in self._cluster.nodes]
        for node in self._cluster.nodes:
            self._tell(world.WorkerJoined(now_s=0.0, worker=node.name, node=node))
        for fault in self._config.faults:
            if fault.worker not in names:
                raise ValueError(f"a fault of worker {fault.worker}, which is not in the cluster")
            self._clock.at(fault.at_s, partial(self._strike, fault))
        for arrival in self._arrivals:
            self._clock.at(arrival.arrival_s, partial(self._arrive, arrival))
            if arrival.abort_s is not None:
                self._clock.at(arrival.abort_s, partial(self._abort, arrival.request_id))
        for name in names:
            self._clock.every(self._config.beat_interval_s, partial(self._beat, name))
        self._clock.every(self._config.tick_interval_s, self._tick)

    def run(self) -> SimulationReport:
        while self._ledger.num_open:
            self._clock.advance()
            if self._clock.now_s > self._config.time_limit_s:
                raise TimeoutError(f"{self._ledger.num_open} requests are open after {self._config.time_limit_s:g} s")
        self._scheduler.check_integrity()
        requests = self._ledger.reports()
        makespan_s = max((request.ended_s for request in requests), default=0.0)
        return SimulationReport(
            plan=self._plan,
            requests=requests,
            stages=tuple(
                StageReport(
                    worker=stage.worker,
                    busy_s=stage.busy_s,
                    busy_share=stage.busy_s / makespan_s if makespan_s else 0.0,
                )
                for stage in self._stages
            ),
            makespan_s=makespan_s,
            phase=self._state.phase,
            detail=self._state.detail,
        )

    # ----------------------------------------------------------------------- the cluster's story

    def _tell(self, event: world.Event) -> None:
        """Give the cluster state an event and carry out its actions, as the coordinator does."""
        for action in self._state.handle(event):
            match action:
                case world.MeasureCluster():
                    self._tell(world.ClusterMeasured(now_s=self._clock.now_s, cluster=self._cluster))
                case world.MakePlan():
                    self._tell(world.PlanMade(now_s=self._clock.now_s, plan=self._plan))
                case world.LoadStages():
                    for stage in action.plan.stages:
                        self._tell(
                            world.WorkerLoaded(
                                now_s=self._clock.now_s, worker=stage.worker, weight_bytes=stage.weight_bytes
                            )
                        )
                case world.StartServing():
                    self._serving = True
                case world.StopServing():
                    self._serving = False
                case world.FailRequests():
                    for output in self._scheduler.fail_all(action.reason):
                        self._ledger.record(output, self._clock.now_s)
                case world.PingWorkers() | world.ShutDownWorkers():
                    pass  # modelled workers need neither

    def _strike(self, fault: FaultSpec) -> None:
        self._dead.add(fault.worker)
        if fault.kind == "exit":
            self._tell(world.WorkerExited(now_s=self._clock.now_s, worker=fault.worker, returncode=-9))

    def _beat(self, worker: str) -> bool:
        if worker in self._dead:
            return False
        self._tell(world.WorkerBeat(now_s=self._clock.now_s, worker=worker, resident_bytes=0, kv_used_bytes=0))
        return True

    def _tick(self) -> bool:
        self._tell(world.Ticked(now_s=self._clock.now_s))
        return True

    # ----------------------------------------------------------------------- the requests' story

    def _arrive(self, arrival: SimulatedRequest) -> None:
        now_s = self._clock.now_s
        if not self._serving:
            self._ledger.refuse(arrival.request_id, self._state.detail, now_s)
            return
        try:
            self._scheduler.add(make_request(arrival), now_s)
        except RequestError as error:
            self._ledger.refuse(arrival.request_id, str(error), now_s)
        self._issue_steps()

    def _abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)
        for output in self._scheduler.drain_outputs():
            self._ledger.record(output, self._clock.now_s)
        self._issue_steps()

    def _issue_steps(self) -> None:
        while self._serving and (step := self._scheduler.schedule()) is not None:
            self._send(step, ())

    def _send(self, step: StepPlan, timings: tuple[StageTiming, ...]) -> None:
        """Send a step on: as many stages as have stamped it are behind it."""
        hop = len(timings)
        if hop == 0:
            num_bytes = step.num_tokens * costs.TOKEN_BYTES
        elif hop < len(self._stages):
            num_bytes = step.num_tokens * self._model.hidden_bytes_per_token
        else:
            num_bytes = len(sampled_tokens(step)) * costs.TOKEN_BYTES
        arrived_s = self._links[hop].send(num_bytes, self._clock.now_s)
        self._clock.at(arrived_s, partial(self._receive, step, num_bytes, timings))

    def _receive(self, step: StepPlan, num_bytes: int, timings: tuple[StageTiming, ...]) -> None:
        if len(timings) == len(self._stages):
            self._finish(step, timings)
            return
        stage = self._stages[len(timings)]
        if stage.worker not in self._dead:
            timing = stage.run(step, num_bytes, self._clock.now_s)
            self._clock.at(timing.finished_s, partial(self._leave, step, (*timings, timing)))

    def _leave(self, step: StepPlan, timings: tuple[StageTiming, ...]) -> None:
        if timings[-1].worker not in self._dead:
            self._send(step, timings)

    def _finish(self, step: StepPlan, timings: tuple[StageTiming, ...]) -> None:
        result = StepResult(step_id=step.step_id, samples=sampled_tokens(step), timings=timings)
        for output in self._scheduler.update(result):
            self._ledger.record(output, self._clock.now_s)
        self._issue_steps()


def _scheduler_config(plan: Plan, model: ModelFootprint, config: SimulationConfig) -> SchedulerConfig:
    return SchedulerConfig(
        num_slots=config.num_slots or len(plan.stages),
        num_spare_slots=1 if config.num_slots is None else 0,
        max_num_sequences=config.max_num_sequences,
        kv_capacity_tokens=plan.kv_capacity_tokens,
        max_context=model.max_context,
        max_waiting_tokens=config.max_waiting_tokens,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        prefix_reuse=config.prefix_reuse,
        target_ttft_s=config.target_ttft_s,
    )
