"""lm-evaluation-harness against `butterfly serve`, and the same task through transformers on the same model file.

`python -m clients.check_lm_eval`, or `make clients`, which installs what it needs. Nothing of ours scores anything:
lm-eval evaluates one task four times (through transformers in float32, through our API in float32, and twice in
bfloat16), and we read its files. What must be so:

- in float32 the API gives transformers' scores, log-likelihoods and greedy flags, up to rounding;
- in bfloat16, our default, numbers are coarser: log-likelihoods are close on average, and a question may be answered
  differently only where such numbers can explain it; each one is listed;
- prompts sent as token ids one by one, and as texts in batches of eight, give the same bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from butterfly.models import open_model
from clients.running import FOLDER, MODEL, CheckError, run_check, run_client, served
from clients.scores import TASK, Comparison, Evaluation, compare, read_evaluation


@dataclass(frozen=True)
class Way:
    """How lm-eval sends its prompts."""

    name: str
    model_option: str
    batch_size: int


TOKEN_IDS = Way("token ids", "num_concurrent=4", 1)
TEXTS = Way("texts, eight a call", "tokenized_requests=False", 8)


@dataclass(frozen=True)
class Tolerance:
    """How far a correct computation may be from float32, in nats of the sum over a choice's tokens."""

    average: float  # of the differences
    largest: float
    margin: float  # another answer may be given when the reference's two choices are this close,
    swing: float  # and when they moved no further than this against each other
    greedy_differences: int | None  # None: any number


# Rounding of float32 (2^-24) in 30 layers, and sums in another order.
FLOAT32 = Tolerance(average=0.001, largest=0.005, margin=0.005, swing=0.01, greedy_differences=0)
# bfloat16 has 8 significant bits. On this task transformers' own bfloat16 is off by 0.09 on average and 0.57 at most.
# Allowed are twice that average, some times that largest, and another answer between choices that are closer than
# that largest, when each of them moved by no more.
BFLOAT16 = Tolerance(average=0.2, largest=2.0, margin=0.5, swing=1.0, greedy_differences=None)


def check() -> None:
    """Evaluate, print, compare. Raises CheckError."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        reference = _transformers(runs / "transformers")
        (exact,) = _butterfly("float32", [TOKEN_IDS], runs)
        ids, texts = _butterfly("bfloat16", [TOKEN_IDS, TEXTS], runs)
    _print_scores([reference, exact, ids, texts])
    print("\nagainst transformers in float32: difference of a log-likelihood in nats, answers that differ")
    problems = [
        *_judge(exact, compare(reference, exact), FLOAT32),
        *_judge(ids, compare(reference, ids), BFLOAT16),
    ]
    if texts.questions != ids.questions:
        problems.append(f"bfloat16: texts and token ids differ by up to {compare(ids, texts).largest} nats, want none")
    if problems:
        raise CheckError("\n".join(problems))
    print("texts in batches and token ids one by one: the same bits")


def _transformers(output: Path) -> Evaluation:
    file = Path(next(entry.file for entry in open_model(MODEL).tensors.values()))
    options = (f"pretrained={file.parent}", f"gguf_file={file.name}", "dtype=float32")
    return _evaluate("transformers, float32", "hf", options, output, "--device", "cpu", "--batch_size", "8")


def _butterfly(dtype: str, ways: Iterable[Way], runs: Path) -> list[Evaluation]:
    with served("--dtype", dtype) as url:
        return [_through_api(url, dtype, way, runs / f"{dtype}-{way.batch_size}") for way in ways]


def _through_api(url: str, dtype: str, way: Way, output: Path) -> Evaluation:
    # The remote tokenizer is ours: /tokenizer_info, /tokenize and /detokenize.
    options = (f"base_url={url}/v1/completions", f"model={MODEL}", "tokenizer_backend=remote", way.model_option)
    title = f"butterfly, {dtype}, {way.name}"
    return _evaluate(title, "local-completions", options, output, "--batch_size", str(way.batch_size))


def _evaluate(title: str, kind: str, model_options: tuple[str, ...], output: Path, *options: str) -> Evaluation:
    print(f"lm-eval: {title} ...", flush=True)
    run_client(
        "lm-eval",
        "run",
        *("--model", kind, "--model_args", ",".join(model_options)),
        *("--include_path", ".", "--tasks", TASK, "--log_samples", "--output_path", str(output)),
        *options,
        folder=FOLDER / "tasks",
    )
    return read_evaluation(title, output)


def _judge(ours: Evaluation, comparison: Comparison, tolerance: Tolerance) -> list[str]:
    """Print a comparison with the reference and return what is wrong with it."""
    print(
        f"{ours.name}: average {comparison.average:.6f}, largest {comparison.largest:.6f}; "
        f"{len(comparison.flips)} choices and {comparison.num_greedy_differences} greedy flags differ; "
        f"scores {'equal' if comparison.has_equal_scores else 'DIFFER'}"
    )
    for flip in comparison.flips:
        print(f"  {flip}")
    problems = [
        f"{ours.name}: {flip}; rounding explains margins up to {tolerance.margin} and swings up to {tolerance.swing}"
        for flip in comparison.flips
        if flip.margin > tolerance.margin or flip.swing > tolerance.swing
    ]
    limits = (
        (comparison.average, tolerance.average, "nats of difference on average"),
        (comparison.largest, tolerance.largest, "nats of difference for one choice"),
        (comparison.num_greedy_differences, tolerance.greedy_differences, "greedy flags differ"),
    )
    for figure, limit, what in limits:
        if limit is not None and figure > limit:
            problems.append(f"{ours.name}: {figure} {what}, limit {limit}")
    return problems


def _print_scores(evaluations: list[Evaluation]) -> None:
    num_choices = sum(len(question.choices) for question in evaluations[0].questions)
    print(f"\n{len(evaluations[0].questions)} questions, {num_choices} choices")
    print(f"{'':44}{'acc':>10}{'acc_norm':>10}{'greedy':>8}")
    for evaluation in evaluations:
        acc, acc_norm = evaluation.scores["acc"], evaluation.scores["acc_norm"]
        print(f"{evaluation.name:44}{acc:10.4f}{acc_norm:10.4f}{evaluation.num_greedy:8}")


if __name__ == "__main__":
    run_check(check, __doc__)
