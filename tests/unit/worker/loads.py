"""A Load for tests of one worker between two neighbours."""

from __future__ import annotations

from butterfly.messages import Load, PeerAddress
from butterfly.specs import StagePlan
from tests.multiprocess.arithmetic_worker import model

NOBODY = PeerAddress(name="", endpoint="", public_key="")


def load_of(
    worker: str,
    *,
    epoch: int = 1,
    num_layers: int = 2,
    embedding: bool = True,
    head: bool = True,
    neighbours: tuple[PeerAddress, PeerAddress] = (NOBODY, NOBODY),
) -> Load:
    stage = StagePlan(
        worker=worker,
        start=0,
        end=num_layers,
        embedding=embedding,
        head=head,
        weight_bytes=1,
        kv_bytes=1,
        predicted_compute_s=0.0,
    )
    return Load(
        epoch=epoch,
        model=model(num_layers),
        stage=stage,
        tensors=(),
        dtype="float32",
        weights="int4",
        previous=neighbours[0],
        next=neighbours[1],
        max_context=64,
    )
