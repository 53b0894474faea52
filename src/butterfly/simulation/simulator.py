"""A coordinator and its workers on a virtual clock, around the real scheduler, planner and cluster state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from butterfly import cluster as world
from butterfly.errors import PlanError, RequestError
from butterfly.partitioning import plan as make_plan
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.simulation.devices import ModelledStage
from butterfly.simulation.ledger import Ledger
from butterfly.simulation.pipeline import ModelledPipeline
from butterfly.simulation.specs import SimulatedRequest, SimulationConfig, SimulationReport, StageReport
from butterfly.simulation.tokens import make_request
from butterfly.simulation.virtual_clock import VirtualClock
from butterfly.simulation.workers import ModelledWorkers
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, RequestOutput, StepResult, WorkloadSpec


def simulate(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    arrivals: Sequence[SimulatedRequest],
    config: SimulationConfig | None = None,
) -> SimulationReport:
    """Serve `arrivals` until each has ended, and report. Same input, same report.

    Joining, measuring and planning take no time, nor does the first loading. Raises InfeasiblePlanError when the
    model does not fit, ValueError for two requests with one id or a fault of an unknown worker, TimeoutError when a
    request is still open at the time limit.
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
        self._workers = ModelledWorkers(cluster, model, config, self._clock, self._tell)
        self._plan = make_plan(model, cluster, workload, config.constraints)
        self._scheduler = Scheduler(_scheduler_config(self._plan, model, config))
        self._pipeline: ModelledPipeline | None = None  # None: no steps are issued
        self._has_served = False
        self._stages: list[ModelledStage] = []  # of all plans

    def start(self) -> None:
        """Let every worker join and load, then book what is to come from outside."""
        self._workers.start()
        for arrival in self._arrivals:
            self._clock.at(arrival.arrival_s, partial(self._arrive, arrival))
            if arrival.abort_s is not None:
                self._clock.at(arrival.abort_s, partial(self._abort, arrival.request_id))
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
            stages=self._stage_reports(makespan_s),
            makespan_s=makespan_s,
            phase=self._state.phase,
            detail=self._state.detail,
            recovery=self._state.recovery,
        )

    def _stage_reports(self, makespan_s: float) -> tuple[StageReport, ...]:
        busy_s: dict[str, float] = {}
        for stage in self._stages:
            busy_s[stage.worker] = busy_s.get(stage.worker, 0.0) + stage.busy_s
        return tuple(
            StageReport(worker=worker, busy_s=seconds, busy_share=seconds / makespan_s if makespan_s else 0.0)
            for worker, seconds in busy_s.items()
        )

    # ----------------------------------------------------------------------- the cluster's story

    def _tell(self, event: world.Event) -> None:
        """Give the cluster state an event and carry out its actions, as the coordinator does."""
        for action in self._state.handle(event):
            self._act(action)

    def _act(self, action: world.Action) -> None:
        now_s = self._clock.now_s
        match action:
            case world.MeasureCluster():
                self._tell(world.ClusterMeasured(now_s=now_s, cluster=self._measured(action)))
            case world.MakePlan():
                self._answer(action)
            case world.LoadStages():
                self._plan = action.plan
                self._workers.load(action.plan, action.epoch)
            case world.StartServing():
                self._serve()
            case world.HoldRequests() | world.StopServing():
                self._close_pipeline()
                self._scheduler.requeue_all()
            case world.FailRequests():
                self._record(self._scheduler.fail_all(action.reason))
            case world.RestartWorker():
                self._workers.restart(action.worker)
            case world.PingWorkers() | world.ShutDownWorkers() | world.ForgetWorker():
                pass  # modelled workers need none of them

    def _measured(self, question: world.MeasureCluster) -> ClusterSpec:
        """What is known of a node does not change when it comes back."""
        names = {node.name for node in (*question.nodes, *question.known.nodes)}
        lost = {node.name for node in self._cluster.nodes} - names
        return ClusterSpec(
            nodes=tuple(node for node in self._cluster.nodes if node.name in names),
            links=tuple(link for link in self._cluster.links if not lost & {link.source, link.target}),
        )

    def _answer(self, question: world.MakePlan) -> None:
        now_s, constraints = self._clock.now_s, self._config.constraints
        here = {node.name for node in question.cluster.nodes}
        excluded = tuple(name for name in constraints.exclude if name in here)
        constraints = replace(constraints, exclude=(*excluded, *question.exclude))
        try:
            plan = make_plan(self._model, question.cluster, self._workload, constraints)
        except PlanError as error:
            self._tell(world.PlanRefused(now_s=now_s, reason=str(error)))
            return
        self._tell(world.PlanMade(now_s=now_s, plan=plan))

    def _serve(self) -> None:
        self._close_pipeline()
        self._pipeline = ModelledPipeline(
            self._plan,
            self._model,
            self._cluster,
            self._clock,
            self._config.rows_per_weight_pass,
            self._workers.dead,
            self._finish,
        )
        self._stages += self._pipeline.stages
        if self._has_served:
            self._record(self._scheduler.resume(_scheduler_config(self._plan, self._model, self._config)))
        self._has_served = True
        self._issue_steps()

    def _close_pipeline(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _tick(self) -> bool:
        self._tell(world.Ticked(now_s=self._clock.now_s, refill_s=self._scheduler.refill_s))
        return True

    # ----------------------------------------------------------------------- the requests' story

    def _arrive(self, arrival: SimulatedRequest) -> None:
        now_s = self._clock.now_s
        if self._state.phase not in ("ready", "moving"):
            self._ledger.refuse(arrival.request_id, self._state.detail, now_s)
            return
        try:
            self._scheduler.add(make_request(arrival), now_s)
        except RequestError as error:
            self._ledger.refuse(arrival.request_id, str(error), now_s)
        self._issue_steps()

    def _abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)
        self._record(self._scheduler.drain_outputs())
        self._issue_steps()

    def _issue_steps(self) -> None:
        while self._pipeline is not None and (step := self._scheduler.schedule()) is not None:
            self._pipeline.send(step)

    def _finish(self, result: StepResult) -> None:
        self._record(self._scheduler.update(result))
        self._issue_steps()

    def _record(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            self._ledger.record(output, self._clock.now_s)


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
