"""The published schema: it describes every route, and what it says is true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from starlette.testclient import TestClient

from butterfly.api import ApiKeys, create_app
from butterfly.api.bodies import ChatBody
from butterfly.monitoring import Metrics
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model

ENGINE = ScriptedEngine(ByteTokenizer())


def _app(keys: ApiKeys | None = None) -> FastAPI:
    return create_app(ENGINE, served_model(ENGINE.tokenizer), metrics=Metrics(), keys=keys)


APP = _app()
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
# Only random valid bodies: the many that vary one field after the other are the first schema's.
ONLY_VALID = {"phases": {"coverage": {"enabled": False}}, "generation": {"mode": "positive"}}
STREAMS = schemathesis.openapi.from_asgi("/openapi.json", APP, config=SchemathesisConfig.from_dict(ONLY_VALID))
load_all_checks()
SOME = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def _call(case: schemathesis.Case[Any]) -> None:
    # A valid body may still ask for more than the context, or for two grammars at once: no schema says so.
    acceptance = CHECKS.get_one("positive_data_acceptance")
    case.call_and_validate(excluded_checks=[acceptance])  # type: ignore[list-item]
    ENGINE.check_nothing_is_open()


@SCHEMA.parametrize()
@SOME
def test_answers_are_what_the_schema_says(case: schemathesis.Case[Any]) -> None:
    _call(case)


@STREAMS.include(path_regex="completions$").parametrize()
@SOME
def test_streams_are_what_the_schema_says(case: schemathesis.Case[Any]) -> None:
    assert isinstance(case.body, dict)
    case.body["stream"] = True

    _call(case)


def _document(app: FastAPI, headers: dict[str, str] | None = None) -> dict[str, Any]:
    with TestClient(app) as client:
        document: dict[str, Any] = client.get("/openapi.json", headers=headers).json()
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method.upper(), operation


def test_every_route_is_described() -> None:
    described = {(path, method): operation for path, method, operation in _operations(_document(APP))}
    routes = {
        (re.sub(r":path\}", "}", route.path), method)
        for route in APP.routes
        if isinstance(route, APIRoute) and route.path != "/openapi.json"
        for method in route.methods or ()
    }

    assert set(described) == routes
    for operation in described.values():
        assert all(media["schema"] for media in operation["responses"]["200"]["content"].values())
        assert "422" not in operation["responses"]


def test_references_lead_somewhere() -> None:
    document = _document(APP)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    assert set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))) <= known


def test_every_field_that_is_checked_is_published() -> None:
    published = _document(APP)["components"]["schemas"]["ChatBody"]

    assert set(published["properties"]) == set(ChatBody.model_fields)
    assert set(published["required"]) == {"model", "messages"}
    assert published["properties"]["model"]["enum"] == ["org/tiny", "tiny"]


def test_keys_are_part_of_the_description() -> None:
    document = _document(_app(ApiKeys({"ann": "a-long-key-1"})), {"authorization": "Bearer a-long-key-1"})

    assert document["security"] == [{"key": []}]
    assert all("401" in operation["responses"] for _, _, operation in _operations(document))
    assert "security" not in _document(APP)
    assert not any("401" in operation["responses"] for _, _, operation in _operations(_document(APP)))
