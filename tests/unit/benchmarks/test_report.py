"""From measurements to verdicts, tables, page and README."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from benchmarks.hardware import KernelPoint, Machine, ThreadRates
from benchmarks.record import (
    ONE_NODE,
    OURS,
    PEER,
    ArmRecord,
    Bound,
    Record,
    Run,
    ScenarioRecord,
    figure,
    rate,
    ratio,
    software_per_hop,
    verdicts,
)
from benchmarks.report import BEGIN, END, page, readme_section, replaced, write_results
from benchmarks.scenarios import DECODE, FAST_WAN, PREFILL, Scenario, all_scenarios
from benchmarks.tables import markdown, number

KERNELS = (
    KernelPoint(kernel="int4", rows=1, seconds=0.001, weight_bytes=6_000_000, flops=23e6),
    KernelPoint(kernel="bf16", rows=1, seconds=0.002, weight_bytes=23_000_000, flops=23e6),
)
MACHINE = Machine(
    cpu="A CPU",
    slug="acme-2core",
    cores=2,
    memory_bytes=24_000_000_000,
    kernel="6.1",
    python="3.11",
    torch="2.13",
    rates=(ThreadRates(threads=1, read_bytes_per_s=10e9, product_flops_per_s=100e9, kernels=KERNELS),),
)
TWO_NODES = next(scenario for scenario in all_scenarios(2) if scenario.name == "two-llama-1b-1gbit-0.5ms")


def run(tpot_s: float, ttft_s: float = 1.0, tokens_per_s: float = 10.0) -> Run:
    return Run(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        output_tokens_per_s=tokens_per_s,
        requests=3,
        input_tokens=48,
        output_tokens=288,
        link_bytes_per_token={"ours0 -> ours1": 4200.0},
        stage_busy={"worker-0": 0.5, "worker-1": 0.25},
        hop_s=0.0006,
    )


def arm(name: str, *tpots_s: float) -> ArmRecord:
    runs = tuple(run(tpot_s) for tpot_s in tpots_s)
    return ArmRecord(name=name, load_time_s=2.0, memory_bytes={"server": 10**9}, runs={"decode": runs})


def scenario_record(*arms: ArmRecord, scenario: Scenario = TWO_NODES) -> ScenarioRecord:
    bounds = {load.name: Bound(ttft_s=0.5, tpot_s=0.02, rate=50.0) for load in scenario.loads}
    return ScenarioRecord(scenario=scenario, state="done", bounds=bounds, hop_wire_s=0.0004, arms=arms)


def record(*scenarios: ScenarioRecord) -> Record:
    return Record(benchmark="peers", created="2026-11-22", machine=MACHINE, rounds=3, quick=False, scenarios=scenarios)


MEASURED = scenario_record(arm(OURS, 0.020, 0.025, 0.050), arm(PEER, 0.050, 0.050, 0.050), arm(ONE_NODE, 0.04))


def test_each_kind_of_load_has_its_own_figure() -> None:
    measured = run(tpot_s=0.02, ttft_s=2.0, tokens_per_s=33.0)
    assert rate(DECODE, measured) == pytest.approx(50)
    assert rate(PREFILL, measured) == pytest.approx(256)
    assert rate(TWO_NODES.load("streams-16"), measured) == 33


def test_a_figure_is_the_median_with_its_spread() -> None:
    found = figure(MEASURED, OURS, DECODE)
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((40, 20, 50))
    assert figure(MEASURED, OURS, PREFILL) is None
    assert figure(scenario_record(), OURS, DECODE) is None


def test_a_ratio_is_that_of_medians_with_the_spread_of_rounds() -> None:
    found = ratio(MEASURED, DECODE, OURS, PEER)
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((2.0, 1.0, 2.5))
    assert ratio(scenario_record(arm(OURS, 0.1)), DECODE, OURS, PEER) is None


def test_software_per_hop_is_without_the_wire() -> None:
    found = software_per_hop(MEASURED, DECODE)
    assert found is not None
    assert found.median == pytest.approx(0.0002)
    assert software_per_hop(MEASURED, TWO_NODES.load("streams-16")) is None


def test_verdicts_say_what_was_reached() -> None:
    found = {verdict.target.against: verdict for verdict in verdicts(record(MEASURED))}
    assert found["peer"].is_met
    assert found["peer"].measured.median == pytest.approx(2.0)
    assert found["bound"].measured.median == pytest.approx(0.8)
    assert found["absolute"].is_met
    assert "one node" not in found  # those targets are for other loads


def test_nothing_is_said_of_targets_without_figures() -> None:
    assert verdicts(record()) == ()
    assert verdicts(record(scenario_record())) == ()


def test_the_page_shows_targets_figures_bounds_and_failures() -> None:
    failed = ScenarioRecord(scenario=all_scenarios(2)[0], state="failed", reason="llama-server ended;\nlast words")
    text = page(record(MEASURED, failed), ["peers_acme-2core_202611_targets.png"], log="## What was tried\n\nA lot.")
    assert "| two nodes, 1 Gb/s, one stream | 2.00x | 1.00–2.50 | >= 1.10 | yes |" in text
    assert "| decode | 40.0 | 20.0–50.0 | 50.0 | 80 % | 20.0 | 20.0–20.0 | 2.00 | 1.10 | yes |" in text
    assert "**Failed**: llama-server ended; last words" in text
    assert "![targets](peers_acme-2core_202611_targets.png)" in text
    assert text.endswith("## What was tried\n\nA lot.\n")


def test_results_are_written_and_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "peers_log.md").write_text("## What was tried\n")
    whole = record(MEASURED)
    written = write_results(whole, tmp_path, plots=False)
    assert written.name == "peers_acme-2core_202611.md"
    assert "## What was tried" in written.read_text()
    assert msgspec.json.decode(written.with_suffix(".json").read_bytes(), type=Record) == whole


def test_readmes_table_has_the_loads_that_say_most() -> None:
    section = readme_section(record(MEASURED))
    assert "1,000 Mb/s, RTT 0.5 ms: decode | 40.0 | 50.0 | 80 % | 20.0 | 2.00 |" in section
    assert "benchmarks/results/peers_acme-2core_202611.md" in section


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replaced(text, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert replaced(once, "new") == once


@pytest.mark.parametrize("text", ["nothing", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", BEGIN])
def test_markers_must_be_there_once(text: str) -> None:
    with pytest.raises(ValueError, match="one <!--"):
        replaced(text, "new")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_cells_cannot_break_a_table() -> None:
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x/y | 1 |"


def test_a_slow_link_is_described_in_words() -> None:
    from benchmarks.report import scenario_title

    scenario = next(s for s in all_scenarios(2) if s.nodes == 4 and s.link == FAST_WAN and s.model == "smollm2")
    assert scenario_title(scenario) == "SmolLM2-135M (Q4_1), 4 nodes with 0.5 of a core each, 100 Mb/s, RTT 10 ms"
