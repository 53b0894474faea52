"""What the coordinator tells of the cluster, as one snapshot."""

from __future__ import annotations

from msgspec.structs import replace

from butterfly.cluster import ClusterState
from butterfly.partitioning import speed_at
from butterfly.scheduling import SchedulerCounts
from butterfly.specs import ClusterStatus, MeasuredSpeed, ModelFootprint, Recovery


def snapshot(
    state: ClusterState, model: str, epoch: int, counts: SchedulerCounts | None, recoveries: tuple[Recovery, ...]
) -> ClusterStatus:
    """`counts`: None while requests are refused."""
    return ClusterStatus(
        phase=state.phase,
        epoch=epoch,
        model=model,
        workers=state.snapshot(),
        plan=state.plan,
        running_requests=counts.num_running if counts else 0,
        waiting_requests=counts.num_waiting if counts else 0,
        kv_used_tokens=counts.used_tokens if counts else 0,
        kv_kept_tokens=counts.kept_tokens if counts else 0,
        detail=state.detail,
        cluster=state.cluster,
        recoveries=recoveries,
    )


def with_speeds(status: ClusterStatus, measured: MeasuredSpeed | None, model: ModelFootprint) -> ClusterStatus:
    """Add how fast lone streams were, and what was predicted of them."""
    if measured is None or status.plan is None or status.cluster is None:
        return status
    if not {stage.worker for stage in status.plan.stages} <= {node.name for node in status.cluster.nodes}:
        return status  # one of them is lost, and nothing is predicted of a plan that cannot run
    predicted = speed_at(status.plan, model, status.cluster, measured.context)
    return replace(status, measured=measured, predicted=predicted)
