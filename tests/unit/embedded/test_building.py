"""From the options of a run to the parts of a cluster."""

from __future__ import annotations

import logging

import msgspec
import pytest

from butterfly.config import ClusterConfig
from butterfly.coordinator import CoordinatorConfig, Patience
from butterfly.embedded import building, embedded_cluster, unwatched
from butterfly.embedded.building import (
    check_it_fits,
    choose_weights,
    coordinator_config,
    log_level_name,
    memory_options,
    open_model,
    ray_arguments,
    worker_command,
    worker_memory_bytes,
)
from butterfly.errors import ConfigError, InfeasiblePlanError, ModelNotFoundError
from butterfly.models import with_weights
from butterfly.specs import PlanConstraints, WorkloadSpec

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
        objective="throughput",
        constraints=PlanConstraints(exclude=("worker-9",)),
        measure=False,
        num_slots=1,
        step_timeout_s=8.0,
    )
    assert coordinator_config(config, open_model(config, unwatched), "int8") == CoordinatorConfig(
        workload=WorkloadSpec(
            concurrency=3, context=128, kv_tokens=200, objective="throughput", max_num_batched_tokens=99
        ),
        constraints=PlanConstraints(exclude=("worker-9",)),
        measure=False,
        dtype="float32",
        weights="int8",
        prefix_reuse="prompt",
        max_num_batched_tokens=99,
        target_ttft_s=7.0,
        num_slots=1,
        patience=Patience(most_s=8.0),
    )


def test_a_worker_is_told_its_share() -> None:
    config = ClusterConfig(model=TINY, num_workers=2, num_threads=3, device="cpu", encrypt=False)
    command = [*worker_command(config), *memory_options({"worker-0": 1 << 30})["worker-0"]]
    assert command[1:6] == ["-m", "butterfly", "worker", "--invitation", "-"]
    assert command[6:8] == ["--device", "cpu"]
    assert command[-5:] == ["--no-encrypt", "--threads", "3", "--memory", str(1 << 30)]


def test_a_worker_of_ray_is_told_only_what_somebody_said() -> None:
    config = ClusterConfig(model=TINY, num_workers=0, ray_address="10.0.0.1:6379")
    silent = ray_arguments(config)
    assert silent[:5] == ["-m", "butterfly", "worker", "--invitation", "-"]
    assert not {"--threads", "--memory", "--no-encrypt"} & set(silent)
    assert worker_memory_bytes(config) == ()
    said = msgspec.structs.replace(config, num_threads=3, memory_bytes=(1 << 30,), device="cuda")
    assert ray_arguments(said)[-4:] == ["--threads", "3", "--memory", str(1 << 30)]
    assert "cuda" in ray_arguments(said)
    several = msgspec.structs.replace(config, num_workers=2, memory_bytes=(5, 7))
    assert "--memory" not in ray_arguments(several)
    assert worker_memory_bytes(several) == (5, 7)


def test_what_fits_on_machines_of_ray_is_not_known_yet() -> None:
    config = ClusterConfig(model=TINY, num_workers=2, ray_address="10.0.0.1:6379")
    assert choose_weights(config, open_model(config, unwatched), {}) == "int4"
    with pytest.raises(InfeasiblePlanError):
        choose_weights(config, open_model(config, unwatched), {"worker-0": 1000, "worker-1": 1000})


def test_words_before_a_worker_are_not_for_ray() -> None:
    config = ClusterConfig(model=TINY, num_workers=1, worker_prefixes=(("nice",),), ray_address="10.0.0.1:6379")
    with pytest.raises(ConfigError, match="with --ray, Ray starts them"):
        open_model(config, unwatched)


@pytest.mark.parametrize(("given", "each"), [((5, 7), (5, 7)), ((5,), (5, 5))], ids=["one for each", "one for all"])
def test_workers_may_have_memories_of_their_own(given: tuple[int, ...], each: tuple[int, ...]) -> None:
    assert worker_memory_bytes(ClusterConfig(model=TINY, num_workers=2, memory_bytes=given)) == each


def test_as_many_sizes_as_workers() -> None:
    with pytest.raises(ConfigError, match=r"3 sizes \(--memory\) were given for 2 workers"):
        open_model(ClusterConfig(model=TINY, num_workers=2, memory_bytes=(1, 2, 3)), unwatched)


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
        check_it_fits(model, {"worker-0": 1000}, WorkloadSpec(concurrency=1, context=128), PlanConstraints())


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (ClusterConfig(model="no/such/folder/model.gguf"), ModelNotFoundError),
        (ClusterConfig(model=TINY, num_workers=3), ConfigError),
        (ClusterConfig(model=TINY, memory_bytes=(1000,)), InfeasiblePlanError),
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


LARGE = "random:llama,hidden=2048,layers=1,heads=16,kv_heads=4,ffn=2048,vocab=300,bits=4"


def chosen(config: ClusterConfig, memory_bytes: int = 1 << 30) -> str:
    return choose_weights(config, open_model(config, unwatched), {"worker-0": memory_bytes})


def test_large_matrices_are_held_in_both_forms_where_the_cpu_and_the_memory_suit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "has_int8_instructions", lambda: True)
    large = ClusterConfig(model=LARGE, context=64)
    int4, mixed = (
        with_weights(open_model(large, unwatched), "bfloat16", weights).footprint for weights in ("int4", "mixed")
    )
    assert chosen(large) == "mixed"
    between = (sum(int4.layer_weight_bytes) + sum(mixed.layer_weight_bytes)) // 2 + mixed.embedding_bytes
    between += mixed.head_bytes + mixed.activation_bytes_per_token * large.max_num_batched_tokens
    assert chosen(large, between + (8 << 20)) == "int4"  # KV cache included
    assert chosen(ClusterConfig(model=TINY)) == "int4"
    assert chosen(ClusterConfig(model=LARGE, context=64, dtype="float32")) == "int4"
    with pytest.raises(InfeasiblePlanError):
        chosen(large, 1 << 20)
    monkeypatch.setattr(building, "has_int8_instructions", lambda: False)
    assert chosen(large) == "int4"


def test_weights_that_were_asked_for_are_taken_or_refused() -> None:
    assert chosen(ClusterConfig(model=TINY, weights="int8")) == "int8"
    with pytest.raises(InfeasiblePlanError):
        chosen(ClusterConfig(model=TINY, weights="mixed"), 1000)


def test_what_may_be_reused_follows_the_weights() -> None:
    config = ClusterConfig(model=TINY)
    model = open_model(config, unwatched)
    assert coordinator_config(config, model, "mixed").prefix_reuse == "prompt"
    assert coordinator_config(config, model, "int4").prefix_reuse == "all"
    by_name = ClusterConfig(model=TINY, prefix_reuse="all")
    assert coordinator_config(by_name, model, "mixed").prefix_reuse == "all"
