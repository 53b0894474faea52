"""A stage holds its own tensors and nothing else: resident memory of real workers against the model's file."""

from __future__ import annotations

import psutil

from butterfly.models import open_model, stage_tensors
from tests.support.product import MODEL, Server

TINY = "random:llama,hidden=64,layers=3,heads=2,vocab=300,context=8192"
PROMPT_WORDS = 900
SLACK_BYTES = 8 << 20  # allocators round up


def resident_after_work(server: Server, model: str) -> dict[str, int]:
    """Resident bytes of each worker by name, after a long prompt went through."""
    server.client().completions.create(model=model, prompt="word " * PROMPT_WORDS, max_tokens=4)
    return {worker.name: int(psutil.Process(worker.pid).memory_info().rss) for worker in server.status().workers}


def test_a_worker_holds_its_share_of_the_weights() -> None:
    """Resident <= fixed cost + 1.25 x stored bytes of its tensors + its KV cache.

    The fixed cost (interpreter, PyTorch) is what the worker of a model of almost no size takes.
    """
    with Server("--context", "8192", model=TINY).wait_ready() as server:
        fixed = max(resident_after_work(server, TINY).values())
    model = open_model(MODEL)
    with Server().wait_ready() as server:
        resident = resident_after_work(server, MODEL)
        stages = server.status().plan
    assert stages is not None
    for stage in stages.stages:
        tensors = stage_tensors(model, stage.start, stage.end, embedding=False, head=stage.head)
        share = sum(entry.num_bytes for entry in tensors)
        kv = sum(model.footprint.kv_bytes_per_token[stage.start : stage.end]) * (PROMPT_WORDS + 8)
        allowed = fixed + 1.25 * share + kv + SLACK_BYTES
        mib = {name: round(size / 2**20) for name, size in (("fixed", fixed), ("share", share), ("KV", kv))}
        print(f"{stage.worker}: resident {resident[stage.worker] / 2**20:.0f} MiB, {mib}")
        assert resident[stage.worker] <= allowed
