"""What a plan predicts, beside what the running cluster measures."""

from __future__ import annotations

from rich.table import Table

from butterfly.specs import MeasuredSpeed, Plan, StreamSpeed

_TOLERANCE = 0.2  # of the prediction
_ENOUGH_STEPS = 8  # fewer say nothing yet
_BETWEEN = "between"  # links, and the software at their ends and in the coordinator


def plan_lines(plan: Plan) -> list[str]:
    """The predictions of a plan, for people."""
    proof = "proven best" if plan.gap == 0 else f"at most {plan.gap:.1%} from the best"
    pins = f", constraints cost {_ms(plan.pin_cost_s)}" if plan.pin_cost_s else ""
    return [
        f"plan for {plan.objective}: {proof}{pins}; bound by {plan.binding}",
        f"predicted: {_ms(plan.predicted_tpot_s)} per token (no less than {_ms(plan.bound_tpot_s)}), "
        f"{_ms(plan.predicted_ttft_s)} to the first after a prompt of {plan.prompt_tokens}, "
        f"{plan.predicted_tokens_per_s:.1f} tokens/s with {plan.concurrency} streams",
    ]


def speed_table(predicted: StreamSpeed, measured: MeasuredSpeed) -> Table:
    """Where the time of a token goes whose stream runs alone; both at the context that was measured."""
    what = f"a token after {measured.context} others (median of {measured.num_steps})"
    table = Table(what, "predicted", "measured", "difference", box=None)
    for name, expected_s, found_s in [*_parts(predicted, measured), ("all", predicted.tpot_s, measured.tpot_s)]:
        change = f"{found_s / expected_s - 1:+.0%}" if expected_s > 0 else ""
        table.add_row(name, _ms(expected_s), _ms(found_s), change)
    return table


def warning(plan: Plan, predicted: StreamSpeed, measured: MeasuredSpeed) -> str:
    """Say so when a token takes much longer, or shorter, than predicted, and where; else an empty string."""
    change = measured.tpot_s / predicted.tpot_s - 1 if predicted.tpot_s > 0 else 0.0
    if measured.num_steps < _ENOUGH_STEPS or abs(change) <= _TOLERANCE:
        return ""
    name, expected_s, found_s = max(_parts(predicted, measured), key=lambda part: abs(part[2] - part[1]))
    if name == _BETWEEN:
        where = f"between the stages (the longest way is to {_longest_hop(plan)})"
        advice = "start the server again to have the links measured anew"
    else:
        where = f"on {name}"
        advice = f"if that lasts, run `butterfly probe --refresh` for {name} and start the server again"
    return (
        f"warning: a token takes {abs(change):.0%} {'longer' if change > 0 else 'less'} than predicted, most of it "
        f"{where}: {_ms(found_s)}, not {_ms(expected_s)}; {advice}"
    )


def _parts(predicted: StreamSpeed, measured: MeasuredSpeed) -> list[tuple[str, float, float]]:
    """(name, predicted, measured) of each stage, and of all that is between them, in seconds."""
    found = {stage.worker: stage.compute_s for stage in measured.stages}
    stages = [(stage.worker, stage.compute_s, found.get(stage.worker, 0.0)) for stage in predicted.stages]
    return [*stages, (_BETWEEN, predicted.between_s, measured.between_s)]


def _longest_hop(plan: Plan) -> str:
    hops = [*((stage.predicted_hop_s, stage.worker) for stage in plan.stages), (plan.return_hop_s, "the coordinator")]
    return max(hops, key=lambda hop: hop[0])[1]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
