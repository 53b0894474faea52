"""The coordinator: the loop that schedules, sends, receives and updates, and follows the cluster state.

Promises: every accepted request ends exactly once; nothing waits without a deadline that names its peer; when the
loop ends, however it ends, requests fail with the reason and workers are told to exit.

A worker that is lost ends no request: requests are held with the tokens they have, the survivors (or a spare, or who
joins) take a new plan, and prefill brings every request to where it was. Steps of the old plan are dropped by epoch.

Before it plans it has the cluster measured (`measuring`): each worker profiles itself, and every link is probed through
the real transport.

Must not know: torch, HTTP, model files. It carries out the actions of `cluster.ClusterState` and decides nothing
about who is alive; it sends the steps of `scheduling.Scheduler` and decides nothing about what runs.
"""

from butterfly.coordinator.client import CoordinatorClient
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.coordinator.coordinator import Coordinator
from butterfly.coordinator.suspicion import Patience

__all__ = ["Coordinator", "CoordinatorClient", "CoordinatorConfig", "Patience", "PipelineModel"]
