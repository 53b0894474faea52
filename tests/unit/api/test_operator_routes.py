from __future__ import annotations

import msgspec
import openai
import pytest

import butterfly
from butterfly.specs import ClusterStatus, WorkerStatus
from tests.unit.api.conftest import Service


def test_models(service: Service) -> None:
    listed = service.openai.models.list()

    assert [model.id for model in listed.data] == ["org/tiny"]
    assert listed.data[0].created == 1_700_000_000
    # Ids have slashes, sent as they are or escaped.
    assert service.openai.models.retrieve("org/tiny").id == "org/tiny"
    assert service.http.get("/v1/models/org/tiny").json()["id"] == "org/tiny"
    assert service.openai.models.retrieve("tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        service.openai.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_health_is_about_the_process_alone(service: Service) -> None:
    service.engine.cluster = ClusterStatus(phase="failed", epoch=1, model="tiny", workers=())

    assert service.http.get("/health").status_code == 200


@pytest.mark.parametrize("phase", ["starting", "loading", "failed", "stopping"])
def test_not_ready_says_why(service: Service, phase: str) -> None:
    service.engine.cluster = msgspec.convert(
        {"phase": phase, "epoch": 1, "model": "tiny", "workers": [], "detail": "worker-2 loads"}, ClusterStatus
    )

    response = service.http.get("/ready")

    assert response.status_code == 503
    assert response.json() == {"ready": False, "phase": phase, "detail": "worker-2 loads"}


def test_ready(service: Service) -> None:
    response = service.http.get("/ready")

    assert response.status_code == 200
    assert response.json()["ready"] is True


def test_status_is_the_snapshot(service: Service) -> None:
    worker = WorkerStatus(name="worker-0", phase="ready", start=0, end=10, embedding=True)
    service.engine.cluster = ClusterStatus(phase="ready", epoch=2, model="tiny", workers=(worker,))

    response = service.http.get("/status")

    assert msgspec.json.decode(response.content, type=ClusterStatus) == service.engine.cluster


def test_metrics(service: Service) -> None:
    response = service.http.get("/metrics")

    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE butterfly_epoch gauge" in response.text


def test_version(service: Service) -> None:
    assert service.http.get("/version").json() == {"version": butterfly.__version__}
