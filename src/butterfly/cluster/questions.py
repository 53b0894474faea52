"""What the state has asked and not heard of yet: one question at a time, a measurement or a plan.

An answer may come late, when the cluster is no longer what the question was about. So a question that is overtaken by
events is dropped, and its answer, which cannot be called back, is passed over when it comes.
"""

from __future__ import annotations

from collections.abc import Set

from butterfly.cluster.actions import MakePlan, MeasureCluster


class Questions:
    def __init__(self) -> None:
        self._pending: MeasureCluster | MakePlan | None = None
        self._num_plans_unanswered = 0  # every MakePlan is answered, in order: only the last answer counts
        self._num_measurements_dropped = 0  # a measurement that another replaces may never be answered

    @property
    def pending(self) -> MeasureCluster | MakePlan | None:
        return self._pending

    def involves(self, worker: str) -> bool:
        """Whether the answer would be about this worker too."""
        asked = self._pending
        if isinstance(asked, MakePlan):
            return any(node.name == worker for node in asked.cluster.nodes)
        return asked is not None and any(node.name == worker for node in (*asked.nodes, *asked.known.nodes))

    def is_measured(self, worker: str) -> bool:
        """Whether this worker is one of those that are to be measured now."""
        asked = self._pending
        return isinstance(asked, MeasureCluster) and any(node.name == worker for node in asked.nodes)

    def ask(self, question: MeasureCluster | MakePlan) -> None:
        self.drop()
        self._pending = question
        self._num_plans_unanswered += isinstance(question, MakePlan)

    def drop(self) -> None:
        """The answer is not wanted any more."""
        self._num_measurements_dropped += isinstance(self._pending, MeasureCluster)
        self._pending = None

    def answer_plan(self) -> MakePlan | None:
        """Return what was asked; None: that has been dropped. Raises LookupError when nothing was asked."""
        if self._num_plans_unanswered == 0:
            raise LookupError
        self._num_plans_unanswered -= 1
        asked = self._pending
        if self._num_plans_unanswered or not isinstance(asked, MakePlan):
            return None
        self._pending = None
        return asked

    def answer_measurement(self, measured: Set[str]) -> MeasureCluster | None:
        """Return what was asked; None: that has been dropped. Raises LookupError when these were not asked for."""
        asked = self._pending
        if isinstance(asked, MeasureCluster):
            new, known = {node.name for node in asked.nodes}, {node.name for node in asked.known.nodes}
            if measured in (new, new | known):
                self._pending = None
                return asked
        if self._num_measurements_dropped == 0:
            raise LookupError
        self._num_measurements_dropped -= 1
        return None
