"""The commands of the terminal, with the real model and real worker processes."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from butterfly.models.packages import packaged_file
from butterfly.specs import ClusterStatus
from tests.support.product import Server, run
from tests.unit.models.samples import llama_metadata, llama_tensors, tiny_llama, write_gguf

QUICK_S = 30.0  # an error that needs no worker; a second or two on an idle machine


# ------------------------------------------------------------------------------------------ answers


def test_the_text_does_not_depend_on_the_number_of_workers() -> None:
    call = ("generate", "smollm2", "The capital of France is", "--raw", "-n", "12", "--temperature", "0")
    answers = [run(*call), run(*call, "--workers", "2"), run(*call, "--workers", "3", "--stats")]
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    first, second, third = (answer.stdout for answer in answers)
    assert "Paris" in first
    assert first == second == third
    assert [answer.stderr for answer in answers[:2]] == ["", ""]  # no progress where nobody watches
    check_stats(answers[2].stderr)


def check_stats(figures: str) -> None:
    """TTFT, TPOT, the compute time of each stage, the software time of a hop: all there and plausible."""
    head, *stages, hop = figures.splitlines()
    found = re.fullmatch(
        r"prompt (\d+) tokens, TTFT ([\d.]+) ms; output (\d+) tokens, TPOT ([\d.]+) ms \([\d.]+ tokens/s\)", head
    )
    assert found is not None, head
    _, ttft_ms, num_tokens, tpot_ms = (float(figure) for figure in found.groups())
    assert num_tokens == 12
    assert ttft_ms > 0
    computes = [re.fullmatch(r"  (worker-\d): compute ([\d.]+) ms per token", line) for line in stages]
    names = [compute[1] for compute in computes if compute]
    assert sorted(names) == ["worker-0", "worker-1", "worker-2"]
    assert 0 < sum(float(compute[2]) for compute in computes if compute) < 2 * tpot_ms
    assert re.fullmatch(r"  software per hop \d+\.\d{3} ms, [\d.]+ KiB sent per token", hop), hop


def test_a_conversation_remembers_what_was_said() -> None:
    """Answers are greedy, so the same question is answered otherwise only for what was said before it."""
    name, what = "My name is Ada.", "What is my name?"
    talk = [name, what, "/new", what, "/new", name, "/exit", "not read"]
    chat = run("chat", "smollm2", "--temperature", "0", "--max-tokens", "12", stdin="\n".join(talk))
    assert chat.returncode == 0
    first, remembering, forgetful, first_again = chat.stdout.splitlines()
    assert first == first_again
    assert "name" in forgetful
    assert remembering != forgetful
    assert chat.stderr == "/new starts over, /exit leaves, Ctrl-C stops an answer\n"


def test_status_shows_who_holds_which_layers(server: Server) -> None:
    shown = run("status", server.url)
    assert (shown.returncode, shown.stderr) == (0, "")
    state, requests, header, *rows = shown.stdout.splitlines()
    assert state.endswith(": ready, epoch 1")
    assert requests == "requests: 0 running, 0 waiting"
    assert header.split()[:4] == ["worker", "state", "layers", "weights"]
    assert [row.split()[:2] for row in rows[:3]] == [[f"worker-{n}", "ready"] for n in range(3)]
    assert sum("embedding + 0-" in row for row in rows[:3]) == 1
    assert sum("-29 + head" in row for row in rows[:3]) == 1
    assert rows[3].startswith("plan for balanced: proven best; bound by")
    assert rows[4].startswith("predicted: ")


def test_status_as_json_is_the_whole_snapshot(server: Server) -> None:
    shown = run("status", f"{server.url}/v1", "--json")
    status = msgspec.json.decode(shown.stdout, type=ClusterStatus)
    assert (status.phase, status.epoch) == ("ready", 1)
    in_order = sorted(status.workers, key=lambda worker: worker.start)
    assert [layer for worker in in_order for layer in range(worker.start, worker.end)] == list(range(30))
    assert status.cluster is not None
    assert all(node.profile is not None for node in status.cluster.nodes)
    assert len(status.cluster.links) == 9  # from each worker to the two others, and to the coordinator
    assert [worker.pid for worker in status.workers] == [worker.pid for worker in server.workers()]
    assert all(worker.resident_bytes > worker.weight_bytes > 0 for worker in status.workers)


# ---------------------------------------------------------------------------------------- bad input


def expect_one_line(*arguments: str, says: str, code: int = 1, timeout_s: float = QUICK_S) -> None:
    """Run a command that must fail at once, with one line that says why; `run` looks for leftovers."""
    ended = run(*arguments, timeout_s=timeout_s)
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.endswith("\n")
    assert re.search(says, ended.stderr), ended.stderr
    assert (ended.returncode, ended.stdout) == (code, "")


def truncated(folder: Path) -> Path:
    whole = packaged_file("smollm2")
    path = folder / "half.gguf"
    with whole.open("rb") as source:
        path.write_bytes(source.read(whole.stat().st_size // 2))
    return path


def foreign(folder: Path) -> Path:
    path = folder / "notes.gguf"
    path.write_text("Dear diary,\n" * 100)
    return path


def unknown_architecture(folder: Path) -> Path:
    return write_gguf(folder / "mamba.gguf", llama_metadata(), llama_tensors(), arch="mamba")


def unsupported_type(folder: Path) -> Path:
    import gguf

    quantized = {"blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q5_1}
    return write_gguf(folder / "q5_1.gguf", llama_metadata(), llama_tensors(), quantized=quantized)


def missing_tensor(folder: Path) -> Path:
    return tiny_llama(folder / "hole.gguf", drop=["blk.1.ffn_down.weight"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nothing.gguf", r"no model '.*nothing\.gguf'"),
        (truncated, r"half\.gguf: truncated: tensor \S+ ends at byte \d+, the file has \d+"),
        (foreign, r"notes\.gguf: not a GGUF file"),
        (unknown_architecture, r"mamba"),
        (unsupported_type, r"blk\.0\.ffn_up\.weight has the type Q5_1; supported: .*Q4_1"),
        (missing_tensor, r"blk\.1\.ffn_down\.weight"),
    ],
    ids=["missing", "truncated", "foreign", "architecture", "tensor type", "tensor"],
)
def test_a_bad_model_is_one_line(make: Callable[[Path], Path], says: str, tmp_path: Path) -> None:
    expect_one_line("generate", str(make(tmp_path)), "Hi", says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "smolm2", "Hi"), r"no model 'smolm2'.*did you mean 'smollm2'\?"),
        (("generate", "smollm2", "Hi", "--workers", "31"), r"31 workers .* only 30 layers"),
        (("generate", "smollm2", "Hi", "--context", "100000"), r"100000 .* 8192"),
        (("generate", "smollm2", "Hi", "--memory", "10M"), r"does not fit .* has 10,485,760"),
        (("generate", "smollm2", "Hi", "--memory", "lots"), r"'lots' is no size; write it like 300M or 4G"),
        (("generate", "smollm2", "Hi", "--device", "tpu"), r"unknown device 'tpu': use auto, cpu"),
        (("generate", "smollm2", "Hi", "--dtype", "int3"), r"unknown dtype 'int3': use auto, bfloat16"),
        (("generate", "smollm2", "Hi", "--log-level", "loud"), r"unknown log level 'loud': use debug"),
        (("status", "http://127.0.0.1:1"), r"no Butterfly server answers at http://127\.0\.0\.1:1"),
        (("status", "not a url"), r"no Butterfly server answers at not a url"),
        (("serve", "smollm2", "--port", "70000"), r"70000 is not a port"),
        (("worker", "--invitation", "/no/such/file"), r"cannot read the invitation /no/such/file"),
        (("worker", "--invitation", "-"), r"there is no valid invitation on standard input"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_bad_values_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    expect_one_line(*arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "smollm2", "Hi", "--worker", "3"), r"unknown option --worker: did you mean --workers\?"),
        (("serve", "smollm2", "--frobnicate"), r"unknown option --frobnicate: see .*serve --help"),
        (("genrate", "smollm2", "Hi"), r"unknown command 'genrate': did you mean generate\?"),
        (("generate", "smollm2"), r"(?i)missing argument 'prompt'"),
        (("generate", "smollm2", "Hi", "--workers", "some"), r"--workers"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], says: str) -> None:
    expect_one_line(*arguments, says=says, code=2)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expect_one_line("serve", "smollm2", "--port", str(port), says=f"port {port} is in use; choose another")


def test_a_prompt_beyond_the_context_is_one_line() -> None:
    says = r"the prompt has \d\d\d tokens, but the context of 64 tokens"
    expect_one_line("generate", "smollm2", "word " * 200, "--context", "64", says=says)


@pytest.mark.parametrize("context", ["50", "10"])
def test_a_context_of_any_length_can_be_filled(context: str) -> None:
    """The KV cache is counted in blocks of 16 tokens, which must not cost a request its last ones."""
    ended = run("generate", "smollm2", "Once upon a time", "--raw", "--context", context, "--temperature", "0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_no_arguments_show_the_help() -> None:
    ended = run()
    assert (ended.returncode, ended.stderr) == (2, "")
    for command in ("serve", "generate", "chat", "worker", "status"):
        assert f"\n  {command} " in ended.stdout
    assert run("--version").stdout.startswith("butterfly ")
