"""What the coordinator gives to those who want tensors of its model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from butterfly.blobs import FileDigests
from butterfly.calls import DescribeTensors, FetchBlob, Knock, Refused, TensorDigests
from butterfly.models import Model, open_model
from butterfly.models.tensor_shelf import TensorShelf
from tests.support.tensor_files import content, digest_of, stored_model

SIZES = {"embedding": 40_000, "layers.0.q": 3 << 20, "layers.0.k": 8, "output_norm": 64}
PATIENCE_S = 10.0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return stored_model(tmp_path / "model", SIZES)


@pytest.fixture
def shelf(model: Model) -> Iterator[TensorShelf]:
    with closing(TensorShelf(model, FileDigests())) as shelf:
        yield shelf


def described(shelf: TensorShelf, *names: str) -> TensorDigests | Refused:
    """Ask until the answer is a final one."""
    waiting = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        answer = shelf.answer(DescribeTensors(names=names))
        assert not isinstance(answer, tuple)
        if isinstance(answer, TensorDigests) or answer.is_final:
            return answer
        waiting.wait(0.01)
    pytest.fail("no digests")


def test_digests_and_bytes(shelf: TensorShelf, model: Model) -> None:
    answer = described(shelf, *SIZES)
    assert answer == TensorDigests(digests=tuple(digest_of(content(model.tensors[name])) for name in SIZES))
    for name, digest in zip(SIZES, answer.digests, strict=True):
        part = shelf.answer(FetchBlob(digest=digest, start=4, num_bytes=1 << 20))
        assert isinstance(part, tuple)
        assert part[0].total_bytes == SIZES[name]
        assert part[1] == content(model.tensors[name])[4 : 4 + (1 << 20)]


def test_a_tied_head_is_the_embedding(tmp_path: Path, model: Model) -> None:
    tied = replace(model, spec=msgspec.structs.replace(model.spec, tied_embedding=True))
    with closing(TensorShelf(tied, FileDigests())) as shelf:
        answer = described(shelf, "lm_head", "embedding")
    assert isinstance(answer, TensorDigests)
    assert len(set(answer.digests)) == 1


def test_unknown_names_and_digests_are_refused(shelf: TensorShelf) -> None:
    answer = described(shelf, "layers.0.q", "layers.77.q")
    assert isinstance(answer, Refused)
    assert "layers.77.q" in answer.reason
    assert isinstance(shelf.answer(FetchBlob(digest=digest_of(b"another"), start=0, num_bytes=1)), Refused)
    assert isinstance(shelf.answer(Knock(secret="", name="", protocol_version=1, version="")), Refused)


def test_what_nobody_asked_for_is_given_to_nobody(shelf: TensorShelf, model: Model) -> None:
    """A digest must have been told before its bytes can be had: nothing can be found by guessing."""
    digest = digest_of(content(model.tensors["embedding"]))
    assert isinstance(shelf.answer(FetchBlob(digest=digest, start=0, num_bytes=1)), Refused)


def test_generated_tensors_have_no_bytes() -> None:
    model = open_model("random:llama,hidden=64,layers=1,vocab=256")
    with closing(TensorShelf(model, FileDigests())) as shelf:
        answer = described(shelf, "embedding")
    assert isinstance(answer, Refused)
    assert "no bytes in a file" in answer.reason


def test_the_answer_never_waits_for_hashing(model: Model, tmp_path: Path) -> None:
    """The second shelf finds the digests on disk; the first has to say that they are not there yet."""
    ask = DescribeTensors(names=("layers.0.q",))
    with closing(TensorShelf(model, FileDigests(tmp_path / "digests.jsonl"))) as shelf:
        first = shelf.answer(ask)
        assert isinstance(first, Refused)
        assert not first.is_final
        known = described(shelf, "layers.0.q")
    with closing(TensorShelf(model, FileDigests(tmp_path / "digests.jsonl"))) as again:
        assert again.answer(ask) == known


def test_a_file_that_cannot_be_read_is_told_once(shelf: TensorShelf, model: Model, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    answer = described(shelf, "embedding")
    assert isinstance(answer, Refused)
    assert "cannot read" in answer.reason
    os.rename(tmp_path / "elsewhere", tmp_path / "model")
    assert isinstance(described(shelf, "embedding"), TensorDigests)


def test_closing_ends_the_hashing(model: Model) -> None:
    shelf = TensorShelf(model, FileDigests())
    shelf.answer(DescribeTensors(names=tuple(SIZES)))
    shelf.close()
    shelf.close()
    assert isinstance(shelf.answer(DescribeTensors(names=("embedding",))), Refused | TensorDigests)
    assert not [thread for thread in threading.enumerate() if thread.name == "digests"]
