"""From the options of a run to the parts of a cluster."""

from __future__ import annotations

import logging

import pytest

from butterfly.config import ClusterConfig
from butterfly.coordinator import CoordinatorConfig
from butterfly.embedded import embedded_cluster, unwatched
from butterfly.embedded.building import (
    check_it_fits,
    coordinator_config,
    log_level_name,
    open_model,
    worker_command,
)
from butterfly.errors import ConfigError, InfeasiblePlanError, ModelNotFoundError
from butterfly.specs import WorkloadSpec

TINY = "random:llama,hidden=64,layers=2"


def test_every_option_of_the_coordinator_is_passed_on() -> None:
    config = ClusterConfig(
        model=TINY,
        dtype="float32",
        context=128,
        max_num_sequences=3,
        kv_tokens=200,
        prefix_reuse="prompt",
        max_num_batched_tokens=99,
        target_ttft_s=7.0,
        num_slots=1,
        step_timeout_s=8.0,
    )
    assert coordinator_config(config, open_model(config, unwatched), "int8") == CoordinatorConfig(
        workload=WorkloadSpec(concurrency=3, context=128, kv_tokens=200),
        dtype="float32",
        weights="int8",
        prefix_reuse="prompt",
        max_num_batched_tokens=99,
        target_ttft_s=7.0,
        num_slots=1,
        step_timeout_s=8.0,
    )


def test_a_worker_is_told_its_share() -> None:
    config = ClusterConfig(model=TINY, num_workers=2, num_threads=3, device="cpu", encrypt=False)
    command = worker_command(config, memory_bytes=1 << 30)
    assert command[1:6] == ["-m", "butterfly", "worker", "--invitation", "-"]
    assert command[6:12] == ["--device", "cpu", "--threads", "3", "--memory", str(1 << 30)]
    assert command[-1] == "--no-encrypt"


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.NOTSET, "debug"), (logging.DEBUG, "debug"), (15, "info"), (logging.WARNING, "warning"), (50, "error")],
)
def test_any_log_level_has_one_that_a_worker_knows(level: int, name: str) -> None:
    assert log_level_name(level) == name


def test_more_workers_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers were asked for, but the model has only 2 layers"):
        open_model(ClusterConfig(model=TINY, num_workers=3), unwatched)


def test_what_cannot_fit_is_refused_with_the_figures() -> None:
    model = open_model(ClusterConfig(model=TINY), unwatched)
    with pytest.raises(InfeasiblePlanError, match="does not fit"):
        check_it_fits(model, ["worker-0"], 1000, WorkloadSpec(concurrency=1, context=128))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (ClusterConfig(model="no/such/folder/model.gguf"), ModelNotFoundError),
        (ClusterConfig(model=TINY, num_workers=3), ConfigError),
        (ClusterConfig(model=TINY, memory_bytes=1000), InfeasiblePlanError),
    ],
    ids=["model", "options", "plan"],
)
def test_what_cannot_run_is_refused_before_anything_is_started(config: ClusterConfig, error: type[Exception]) -> None:
    """The check that no process and no thread is left runs after every test."""
    with pytest.raises(error), embedded_cluster(config):
        raise AssertionError("it started")


def test_every_worker_has_its_prefix_or_none_has() -> None:
    config = ClusterConfig(model=TINY, num_workers=2, worker_prefixes=(("nice",),))
    with pytest.raises(ConfigError, match=r"1 prefixes \(--start-with\) were given for 2 workers"):
        open_model(config, unwatched)
