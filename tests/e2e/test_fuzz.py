"""What the published schema allows and forbids, thrown at a real server: no 5xx, and the cluster is as it was.

The unit tests throw far more at the application with a scripted engine; here the calls that are valid reach the
stages: odd penalties, biases, grammars, token ids, logprobs of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from tests.support.product import Server, eventually

MOST = {"n": 2, "max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 3}  # a small machine has to answer them all
load_all_checks()


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    options = ("--context", "64", "--max-sequences", "8", "--kv-tokens", "256", "--target-ttft", "600")
    with Server(*options, workers=2).wait_ready() as server:
        yield server
        assert server.status().phase == "ready"
        assert eventually(lambda: server.status().kv_used_tokens == 0, within_s=10)
        assert server.complaints() == ""


def test_whatever_is_asked_the_answer_is_no_accident(small_server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")
    num_called = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        _fuzz(found.ok())
        num_called += 1
    assert num_called >= 10


def _fuzz(operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],  # a failing example need not be the smallest
        derandomize=True,
    )
    def calls(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict):
            case.body.pop("timeout", None)  # who gives no time is told 504, as it should be
            for name, most in MOST.items():
                asked = case.body.get(name)
                if isinstance(asked, int):
                    case.body[name] = min(asked, most)
        acceptance = CHECKS.get_one("positive_data_acceptance")  # no schema says what the context holds
        case.call_and_validate(excluded_checks=[acceptance], timeout=60)  # type: ignore[list-item]

    calls()
