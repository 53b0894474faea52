"""Two evaluations of the same task side by side. lm-eval computed the scores; here they are only read and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

TASK = "butterfly_common_sense"
METRICS = ("acc", "acc_norm")


class _Document(msgspec.Struct):
    question: str
    choices: list[str]


class _Sample(msgspec.Struct):
    """A line of lm-eval's samples file; `filtered_resps` has the log-likelihood of each choice, and if it is greedy."""

    doc_id: int
    doc: _Document
    filtered_resps: list[tuple[str, str]]


class _Results(msgspec.Struct):
    results: dict[str, dict[str, float | str | None]]


@dataclass(frozen=True)
class Question:
    text: str
    choices: tuple[str, ...]
    loglikelihoods: tuple[float, ...]  # of each choice, nats
    is_greedy: tuple[bool, ...]  # whether each choice is what greedy decoding gives

    def points(self, metric: str) -> list[float]:
        """What the metric compares: acc the log-likelihoods, acc_norm the same per character."""
        if metric == "acc":
            return list(self.loglikelihoods)
        return [value / len(choice) for value, choice in zip(self.loglikelihoods, self.choices, strict=True)]

    def chosen(self, metric: str) -> int:
        points = self.points(metric)
        return points.index(max(points))


@dataclass(frozen=True)
class Evaluation:
    name: str
    scores: dict[str, float]  # by metric
    questions: tuple[Question, ...]

    @property
    def num_greedy(self) -> int:
        return sum(sum(question.is_greedy) for question in self.questions)


def read_evaluation(name: str, folder: Path) -> Evaluation:
    """Return what one run of lm-eval wrote below `folder` (--output_path, --log_samples)."""
    (results_file,) = folder.rglob("results_*.json")
    (samples_file,) = folder.rglob(f"samples_{TASK}_*.jsonl")
    results = msgspec.json.decode(results_file.read_bytes(), type=_Results).results[TASK]
    samples = [msgspec.json.decode(line, type=_Sample) for line in samples_file.read_bytes().splitlines()]
    return Evaluation(
        name=name,
        scores={metric: float(results[f"{metric},none"] or 0.0) for metric in METRICS},
        questions=tuple(_question(sample) for sample in sorted(samples, key=lambda sample: sample.doc_id)),
    )


def _question(sample: _Sample) -> Question:
    return Question(
        text=sample.doc.question,
        choices=tuple(sample.doc.choices),
        loglikelihoods=tuple(float(value) for value, _ in sample.filtered_resps),
        is_greedy=tuple(flag == "True" for _, flag in sample.filtered_resps),
    )


@dataclass(frozen=True)
class Flip:
    """A question that two evaluations answer differently."""

    metric: str
    question: str
    reference: str  # its choice
    ours: str
    margin: float  # between the two choices in the reference, nats (acc_norm: of the shorter choice)
    swing: float  # that and the margin in ours: how far the choices moved against each other

    def __str__(self) -> str:
        return (
            f"{self.metric}: '{self.question}' {self.ours!r} for {self.reference!r}, "
            f"margin {self.margin:.4f}, swing {self.swing:.4f} nats"
        )


@dataclass(frozen=True)
class Comparison:
    average: float  # difference of a choice's log-likelihood, nats
    largest: float
    num_greedy_differences: int
    flips: tuple[Flip, ...]
    has_equal_scores: bool


def compare(reference: Evaluation, ours: Evaluation) -> Comparison:
    """Raises ValueError when they did not answer the same questions."""
    pairs = list(zip(reference.questions, ours.questions, strict=True))
    if any((one.text, one.choices) != (other.text, other.choices) for one, other in pairs):
        raise ValueError(f"{reference.name} and {ours.name} answered different questions")
    differences = [
        abs(a - b) for one, other in pairs for a, b in zip(one.loglikelihoods, other.loglikelihoods, strict=True)
    ]
    greedy = [a != b for one, other in pairs for a, b in zip(one.is_greedy, other.is_greedy, strict=True)]
    return Comparison(
        average=sum(differences) / len(differences),
        largest=max(differences),
        num_greedy_differences=sum(greedy),
        flips=tuple(_flips(pairs)),
        has_equal_scores=reference.scores == ours.scores,
    )


def _flips(pairs: list[tuple[Question, Question]]) -> Iterator[Flip]:
    for metric in METRICS:
        for one, other in pairs:
            theirs, ours = one.chosen(metric), other.chosen(metric)
            if theirs == ours:
                continue
            points, moved = one.points(metric), other.points(metric)
            # acc_norm divides by the length, and so divides what numerical noise can do: back to nats.
            length = 1 if metric == "acc" else min(len(one.choices[theirs]), len(one.choices[ours]))
            margin = (points[theirs] - points[ours]) * length
            yield Flip(
                metric=metric,
                question=one.text,
                reference=one.choices[theirs],
                ours=one.choices[ours],
                margin=margin,
                swing=margin + (moved[ours] - moved[theirs]) * length,
            )
