from __future__ import annotations

from typing import Any

import pytest

from butterfly.config import ClusterConfig
from butterfly.errors import ConfigError
from butterfly.llm.options import ANY_WAIT_S, ClusterOptions, cluster_config


def test_nothing_said_is_the_default_of_the_commands_but_for_waiting() -> None:
    assert cluster_config("smollm2") == ClusterConfig(model="smollm2", target_ttft_s=ANY_WAIT_S)


def test_everything_said_arrives() -> None:
    options: ClusterOptions = {
        "workers": 3,
        "device": "cuda:1",
        "dtype": "float32",
        "threads": 2,
        "memory": "1.5G",
        "context": 100,
        "max_sequences": 5,
        "slots": 1,
        "kv_tokens": 300,
        "weights": "int8",
        "prefix_reuse": "prompt",
        "max_batched_tokens": 64,
        "encrypt": False,
        "step_timeout": 20,
        "heartbeat_timeout": 2.5,
    }
    assert set(options) == set(ClusterOptions.__annotations__)
    assert cluster_config("m", **options) == ClusterConfig(
        model="m",
        num_workers=3,
        device="cuda:1",
        dtype="float32",
        weights="int8",
        num_threads=2,
        memory_bytes=(3 << 29,),
        context=100,
        max_num_sequences=5,
        num_slots=1,
        kv_tokens=300,
        prefix_reuse="prompt",
        max_num_batched_tokens=64,
        target_ttft_s=ANY_WAIT_S,
        encrypt=False,
        step_timeout_s=20,
        heartbeat_timeout_s=2.5,
    )


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [("300M", (300 << 20,)), (12345, (12345,)), ("1G,2M", (1 << 30, 2 << 20)), (None, ())],
)
def test_memory_is_sizes_or_bytes(memory: str | int | None, num_bytes: tuple[int, ...]) -> None:
    assert cluster_config("m", memory=memory).memory_bytes == num_bytes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"worker": 3}, r"unknown option worker: did you mean workers\?"),
        ({"frobnicate": 3}, "unknown option frobnicate: known are workers, device, "),
        ({"workers": 0}, "workers: expected an integer of at least 1, not 0"),
        ({"workers": "3"}, "workers: expected an integer of at least 1, not '3'"),
        ({"workers": True}, "workers: expected an integer of at least 1, not True"),
        ({"context": -1}, "context: expected an integer of at least 0, not -1"),
        ({"memory": 0}, "memory: expected an integer of at least 1, not 0"),
        ({"memory": "lots"}, "'lots' is no size; write it like 300M or 4G"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": 3}, "device: expected a string, not 3"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"prefix_reuse": "some"}, "prefix_reuse: expected 'auto' or 'all' or 'prompt' or 'off', not 'some'"),
        ({"encrypt": "yes"}, "encrypt: expected True or False, not 'yes'"),
        ({"step_timeout": 0.5}, "step_timeout: expected a number of at least 1, not 0.5"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cluster_config("m", **options)


def test_a_model_is_a_string() -> None:
    with pytest.raises(ConfigError, match="model: expected a path, alias or hub id, got int"):
        cluster_config(3)  # type: ignore[arg-type]
