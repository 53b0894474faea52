"""The coordinator: the loop that schedules, sends, receives and updates, and follows the cluster state.

Promises: every accepted request ends exactly once; nothing waits without a deadline that names its peer; when the
loop ends, however it ends, requests fail with the reason and workers are told to exit.

Before it plans it has the cluster measured (`measuring`): each worker profiles itself, and every link is probed through
the real transport.

Must not know: torch, HTTP, model files. It carries out the actions of `cluster.ClusterState` and decides nothing
about who is alive; it sends the steps of `scheduling.Scheduler` and decides nothing about what runs.
"""

from butterfly.coordinator.client import CoordinatorClient
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.coordinator.coordinator import Coordinator

__all__ = ["Coordinator", "CoordinatorClient", "CoordinatorConfig", "PipelineModel"]
