"""The hub: which files are fetched, from a small real server; and what is said when there is none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from butterfly.errors import ModelFormatError, ModelNotFoundError
from butterfly.models.hub import needed_files, parse_hub_id
from tests.unit.models.samples import tiny_llama

COMMIT = "0" * 40
SCRIPT = """
import sys
from butterfly.errors import ButterflyError
from butterfly.models import open_model
heard = []
try:
    model = open_model(sys.argv[1], progress=lambda *step: heard.append(step))
    steps = [step[1:] for step in heard]
    print(model.display_name, model.spec.family, *steps[:1], *steps[-1:], steps == sorted(steps))
except ButterflyError as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as one download takes."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (set once per server)
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name, "size": len(raw)} for name, raw in self.files.items()]
            raw = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith("/org/tiny/resolve/main/") and path.rpartition("/")[2] in self.files:
            raw = self.files[path.rpartition("/")[2]]
            self.asked.append(path.rpartition("/")[2])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Hub.files = {"m.gguf": tiny_llama(tmp_path / "m.gguf").read_bytes(), "README.md": b"long" * 1000}
    Hub.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def open_in_child(reference: str, home: Path, **environment: str) -> str:
    """Open a model in a fresh process (the hub library reads its settings on import); return what it printed."""
    env = {**os.environ, "HF_HOME": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, reference], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_only_needed_files_come_once_and_then_from_the_cache(server: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    size = len(Hub.files["m.gguf"])
    expected = f"org/tiny:m.gguf llama (0, {size}) ({size}, {size}) True"
    assert open_in_child("org/tiny:m.gguf", home, HF_ENDPOINT=server) == expected
    assert set(Hub.asked) == {"m.gguf"}
    assert open_in_child("org/tiny:m.gguf", home, HF_HUB_OFFLINE="1") == "org/tiny:m.gguf llama True"


def test_a_repository_with_one_gguf_needs_no_file_name(server: str, tmp_path: Path) -> None:
    assert open_in_child("org/tiny", tmp_path / "home", HF_ENDPOINT=server).startswith("org/tiny llama")


def test_errors_of_the_hub_are_one_line(server: str, tmp_path: Path) -> None:
    missing = open_in_child("org/absent", tmp_path, HF_ENDPOINT=server)
    assert missing.startswith("ModelNotFoundError org/absent: the hub does not give it: 404")
    wrong_file = open_in_child("org/tiny:other.gguf", tmp_path, HF_ENDPOINT=server)
    assert wrong_file == "ModelNotFoundError org/tiny: no file other.gguf there (GGUF files: m.gguf)"


def test_without_a_network_it_is_one_line(tmp_path: Path) -> None:
    closed = open_in_child("org/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert closed.startswith("ModelNotFoundError org/tiny: the hub does not give it")
    offline = open_in_child("org/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("ModelNotFoundError org/tiny: the hub does not give it")
    assert len(closed.splitlines()) == len(offline.splitlines()) == 1


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("org/na.me-1_x", ("org/na.me-1_x", None)),
        ("org/name:f.gguf", ("org/name", "f.gguf")),
        ("org/name:sub/f.gguf", ("org/name", "sub/f.gguf")),
        ("org/name:f.bin", None),
        ("name", None),
        ("a/b/c", None),
        ("./name", None),
        ("../name", None),
        ("org/model.gguf", None),
    ],
)
def test_the_form_of_a_hub_id(reference: str, expected: object) -> None:
    assert parse_hub_id(reference) == expected


def test_what_is_needed_of_a_repository() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    common = ["README.md", "config.json", "pytorch_model.bin", "tokenizer.json"]
    whole = [*common, "model.safetensors", "model.safetensors.index.json", *shards]
    assert set(needed_files("r", [*common, "model.safetensors"], None)) == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert set(needed_files("r", [*common, *shards], None)) == {"config.json", "tokenizer.json", *shards}
    assert not {*needed_files("r", whole, None)} & {*shards}
    assert needed_files("r", ["a.gguf", "b.gguf"], "b.gguf") == ["b.gguf"]
    with pytest.raises(ModelFormatError, match=r"choose one: r:FILE \(GGUF files: a\.gguf, b\.gguf\)"):
        needed_files("r", ["a.gguf", "b.gguf"], None)
    with pytest.raises(ModelFormatError, match="neither"):
        needed_files("r", ["config.json", "pytorch_model.bin"], None)
    with pytest.raises(ModelNotFoundError, match=r"no file c\.gguf"):
        needed_files("r", ["a.gguf"], "c.gguf")
