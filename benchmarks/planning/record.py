"""What a run leaves behind: for each cluster, each plan with what was predicted and what was measured."""

from __future__ import annotations

from statistics import median

from benchmarks.hardware import Machine
from benchmarks.planning.clusters import EmulatedCluster
from butterfly.specs import ClusterSpec, Plan, Spec

PLANNED = "planned"


class Measurement(Spec, frozen=True):
    """One server: what it predicted from its own measurement of the nodes, and medians over a load's requests."""

    tpot_s: float  # of a single stream
    ttft_s: float  # of a prompt of 512 tokens
    tokens_per_s: float  # of all streams
    predicted_tpot_s: float
    predicted_ttft_s: float
    predicted_tokens_per_s: float


class PlanRecord(Spec, frozen=True):
    """One placement. Predictions are for the contexts at which it was measured, and from the same server's profiles."""

    policies: tuple[str, ...]  # all that chose it
    plan: Plan
    measurements: tuple[Measurement, ...] = ()
    failure: str = ""

    def median(self, what: str) -> float:
        return float(median(getattr(one, what) for one in self.measurements))

    def error(self, what: str) -> float:
        """(predicted - measured) / measured of `tpot_s` or `ttft_s`."""
        measured = self.median(what)
        return (self.median(f"predicted_{what}") - measured) / measured


class ClusterRecord(Spec, frozen=True):
    cluster: EmulatedCluster
    measured: ClusterSpec | None = None  # as the product itself measured it
    plans: tuple[PlanRecord, ...] = ()
    refused: tuple[str, ...] = ()  # policies that found no placement, with the reason
    failure: str = ""


class PlanningRecord(Spec, frozen=True):
    created: str
    machine: Machine
    rounds: int
    clusters: tuple[ClusterRecord, ...]

    def errors(self, what: str) -> list[float]:
        """Of every plan that was measured."""
        return [abs(plan.error(what)) for one in self.clusters for plan in one.plans if plan.measurements]
