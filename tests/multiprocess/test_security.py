"""Attacks on a running cluster: each is refused and logged, nothing crashes, and the answers stay what they were."""

from __future__ import annotations

import random
import re
import secrets
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from butterfly.calls import Refused, Welcome
from butterfly.communication import KeyPair
from butterfly.communication.identity import JoinLine, parse_join_line
from butterfly.messages import PROTOCOL_VERSION, Failed, Join, Loaded, PeerAddress, Result, Shutdown, Step, encode
from butterfly.specs import SequenceStep, StepPlan
from tests.support.greedy_streams import GreedyStreams, greedy_texts
from tests.support.open_cluster import JoinedWorker, OpenServer, environment_of, prompts, worker_command
from tests.support.product import BUTTERFLY, PATIENCE_S, eventually
from tests.support.rogue import (
    GREETING,
    a_step,
    hangs_up_on,
    harmless_messages,
    nonsense,
    old_result,
    rogue,
    send_all,
)
from tests.support.tcp_proxy import TcpProxy
from tests.support.wire import Wire, can_listen_in

FIRST, LAST = "first", "last"
HIDDEN_SIZE, CUT = 576, 15
PROMPTS, TOKENS = prompts(2), 24
SECRET_IDS = (4093, 11003, 20011, 30011, 5003, 40009, 6007, 45007)  # a prompt of token ids that stand out
PROXY_HOST = "127.0.0.2"
NUM_FUZZED = 300


class Town:
    """Two workers with a stage each. All that the last one says to the server passes through proxies."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        pins = ("--layers", f"{FIRST}=0:{CUT}", "--layers", f"{LAST}={CUT}:30")  # so each waits for the other
        options = (*pins, "--no-measure", "--context", "1024")
        self.folder = folder
        self.server = stack.enter_context(OpenServer(folder / "state", *options, workers=0)).wait_open()
        self.line = parse_join_line(self.server.line)
        port = self.server.port
        self.door = stack.enter_context(TcpProxy(port, host=PROXY_HOST, port=port))
        self.inbox = stack.enter_context(TcpProxy(port + 1, host=PROXY_HOST, port=port + 1))
        behind = replace_host(self.line, PROXY_HOST).text
        self.first = stack.enter_context(JoinedWorker(FIRST, folder / FIRST, self.server.line))
        self.last = stack.enter_context(JoinedWorker(LAST, folder / LAST, behind))
        self.server.wait_ready()
        assert self.server.stages() == [FIRST, LAST]
        self.texts = greedy_texts(self.server, PROMPTS, TOKENS)

    @property
    def epoch(self) -> int:
        return self.server.status().epoch

    def expect_all_is_well(self, epoch: int) -> None:
        """Nobody was lost, and the answers are the same."""
        assert greedy_texts(self.server, PROMPTS, TOKENS) == self.texts
        assert (self.server.stages(), self.epoch) == ([FIRST, LAST], epoch), self.server.complaints()
        self.expect_no_crash()

    def expect_no_crash(self) -> None:
        for log in (self.server.complaints(), self.first.log(), self.last.log()):
            assert "Traceback" not in log, log
            assert self.line.secret not in log


def replace_host(line: JoinLine, host: str) -> JoinLine:
    return JoinLine(host=host, port=line.port, public_key=line.public_key, secret=line.secret)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(tmp_path_factory.mktemp("town"), stack)


# ------------------------------------------------------------------------------------------- who may not come in


def refused_worker(folder: Path, line: str, *options: str) -> str:
    """Try to come in; return the only line that it says."""
    command = worker_command("intruder", folder / "cache", *options)
    done = subprocess.run(
        command,
        input=f"{line}\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment_of(folder),
    )
    assert done.returncode != 0
    return done.stderr


def test_without_a_secret_nobody_comes_in(town: Town, tmp_path: Path) -> None:
    assert "no '.' between key and secret" in refused_worker(tmp_path, town.line.text.rpartition(".")[0])


def test_a_wrong_secret_is_refused_and_logged(town: Town, tmp_path: Path) -> None:
    wrong = JoinLine(town.line.host, town.line.port, town.line.public_key, secrets.token_urlsafe(24))
    told = refused_worker(tmp_path, wrong.text)
    assert "the join secret is not known here" in told
    assert wrong.secret not in told
    assert eventually(lambda: "refused a worker on 127.0.0.1" in town.server.complaints(), 5)


def test_an_expired_token_is_refused(town: Town, tmp_path: Path) -> None:
    line = town.server.manage_tokens("make", "--expires", "0.001s")
    assert "expired on" in refused_worker(tmp_path, line)


def test_a_man_in_the_middle_gets_no_secret(town: Town, tmp_path: Path) -> None:
    """The line has the key of another coordinator than the one that answers."""
    other = JoinLine(town.line.host, town.line.port, KeyPair.generate().public_key, town.line.secret)
    assert "with another key than expected" in refused_worker(tmp_path, other.text, "--join-timeout", "1")


def test_another_version_is_told_so(town: Town) -> None:
    epoch = town.epoch
    with rogue("elder", KeyPair.generate()) as elder:
        answer = elder.knock(town.line, "elder", PROTOCOL_VERSION - 1)
        assert isinstance(answer, Refused)
        assert "install the same version on both" in answer.reason
        assert isinstance(elder.knock(town.line, "elder"), Welcome)
        with elder.talking_to(town.line.public_key, town.server.port + 1) as outbox:
            outbox.send(join_of("elder", PROTOCOL_VERSION - 1), timeout_s=PATIENCE_S)
            outbox.send(join_of(FIRST, PROTOCOL_VERSION), timeout_s=PATIENCE_S)
            assert eventually(lambda: f"elder speaks protocol {PROTOCOL_VERSION - 1}" in town.server.complaints(), 5)
            assert eventually(lambda: f"elder tried to join under the name {FIRST}" in town.server.complaints(), 5)
    assert town.server.worker("elder") is None
    town.expect_all_is_well(epoch)


def join_of(name: str, protocol_version: int) -> Join:
    return Join(
        epoch=0,
        worker=name,
        protocol_version=protocol_version,
        host="elsewhere",
        pid=1,
        device="cpu",
        memory_bytes=1 << 30,
        memory_bandwidth_bytes_per_s=1e10,
        inbox=PeerAddress(name=name, endpoint="tcp://127.0.0.1:9", public_key=KeyPair.generate().public_key),
    )


def test_a_newcomer_that_lies_about_itself_and_others_harms_nobody(town: Town) -> None:
    """Resources of no machine, an inbox inside the server, an epoch after which none can come, a false accusation."""
    texts, inside = town.texts, PeerAddress(name="liar", endpoint="inproc://zeromq.zap.01", public_key="x" * 40)
    honest = join_of("liar", PROTOCOL_VERSION)
    accusation = Failed(epoch=town.epoch, worker="liar", reason="it does", unreachable_peer=FIRST)
    with rogue("liar", KeyPair.generate()) as liar, GreedyStreams(town.server, PROMPTS, TOKENS) as streams:
        assert isinstance(liar.knock(town.line, "liar"), Welcome)
        with liar.talking_to(town.line.public_key, town.server.port + 1) as outbox:
            outbox.send(accusation, timeout_s=PATIENCE_S)
            outbox.send(replace(honest, memory_bytes=0), timeout_s=PATIENCE_S)
            outbox.send(replace(honest, memory_bandwidth_bytes_per_s=float("nan")), timeout_s=PATIENCE_S)
            outbox.send(replace(honest, inbox=inside), timeout_s=PATIENCE_S)
            assert eventually(lambda: "liar joined with 0 bytes" in town.server.complaints(), 5)
            assert eventually(lambda: "the address of liar is no tcp://" in town.server.complaints(), 5)
            outbox.send(replace(honest, last_epoch=(1 << 64) - 1), timeout_s=PATIENCE_S)
            assert eventually(lambda: phase_of(town, "liar") == "standby", 5)
            outbox.send(accusation, timeout_s=PATIENCE_S)
            assert eventually(lambda: phase_of(town, "liar") == "lost", 5)
        assert streams.texts() == texts
    assert eventually(lambda: town.server.status().phase == "ready", PATIENCE_S)
    assert town.server.stages() == [FIRST, LAST]
    town.expect_no_crash()


@pytest.mark.parametrize("option", ["--port", "--listen"])
def test_a_port_that_is_taken_is_said_in_one_line(town: Town, tmp_path: Path, option: str) -> None:
    ports = {"--port": town.server.url.rpartition(":")[2], "--listen": f"127.0.0.1:{town.server.port}"}
    command = [*BUTTERFLY, "serve", "smollm2", "--port", "0", option, ports[option]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment_of(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "port" in done.stderr


# -------------------------------------------------------------------------------------------- nonsense of strangers


def test_garbage_at_the_ports_changes_nothing(town: Town) -> None:
    epoch, chance = town.epoch, random.Random(6)
    oversized = GREETING + b"\x02" + struct.pack("!Q", 1 << 40)  # a frame that would fill any memory
    null = GREETING.replace(b"CURVE", b"NULL\0") + b"\x04\x26\x05READY" + bytes(32)
    words = [b"GET / HTTP/1.1\r\n\r\n", null, oversized, GREETING + b"\x04\xc8\x05HELLO" + bytes(194)]
    words += [chance.randbytes(chance.randrange(1, 2000)) for _ in range(8)]
    words += [GREETING + chance.randbytes(chance.randrange(1, 2000)) for _ in range(8)]
    for port in (town.server.port, town.server.port + 1, *town.first.ports()):
        for each in words:
            send_to(port, each)
    assert hangs_up_on(town.server.port, oversized)
    assert hangs_up_on(town.server.port + 1, oversized)
    town.expect_all_is_well(epoch)


def send_to(port: int, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(words)


# ------------------------------------------------------------------------------------ nonsense of those who were let in


def test_one_that_was_let_in_and_never_joined_can_say_nothing(town: Town) -> None:
    epoch, chance = town.epoch, random.Random(1)
    with rogue("guest", KeyPair.generate()) as guest:
        assert isinstance(guest.knock(town.line, "guest"), Welcome)
        with guest.talking_to(town.line.public_key, town.server.port + 1) as outbox:
            send_all(outbox, nonsense(chance, NUM_FUZZED, harmless_messages("guest", epoch)))
            send_all(outbox, [[encode(message)] for message in harmless_messages("guest", epoch)])
            send_all(outbox, [[encode(Loaded(epoch=epoch, worker=FIRST, weight_bytes=1))]])
            send_all(outbox, [[bytes(20 << 20)], [encode(Shutdown(epoch=epoch)), bytes(1 << 20)]])
            assert eventually(lambda: "guest sent a malformed message" in town.server.complaints(), 5)
    town.expect_all_is_well(epoch)


def test_nonsense_of_a_worker_does_no_harm_to_the_server(town: Town) -> None:
    epoch, chance = town.epoch, random.Random(2)
    with rogue(FIRST, town.first.keys()) as first, GreedyStreams(town.server, PROMPTS, TOKENS) as streams:
        with first.talking_to(town.line.public_key, town.server.port + 1) as outbox:
            send_all(outbox, nonsense(chance, NUM_FUZZED, harmless_messages(FIRST, epoch)))
            assert eventually(lambda: f"{FIRST} sent a malformed message" in town.server.complaints(), 5)
        assert streams.texts() == town.texts
    town.expect_all_is_well(epoch)


def test_nonsense_of_a_peer_does_no_harm_to_a_worker(town: Town) -> None:
    """Nor do orders that only the coordinator may give, and steps that only the stage before may send."""
    epoch, chance = town.epoch, random.Random(3)
    victim = town.first
    with rogue(LAST, town.last.keys()) as last, GreedyStreams(town.server, PROMPTS, TOKENS) as streams:
        with last.talking_to(victim.keys().public_key, *victim.ports()) as outbox:
            send_all(outbox, [[encode(a_step(epoch, 10**6, (2, HIDDEN_SIZE))), bytes(2 * 2 * HIDDEN_SIZE)]])
            assert eventually(lambda: f"{LAST} sent a step that coordinator should send" in victim.log(), 5)
            send_all(outbox, nonsense(chance, NUM_FUZZED, harmless_messages(LAST, epoch)))
            send_all(outbox, [[encode(Shutdown(epoch=epoch))], [encode(old_result(epoch))]])
        assert streams.texts() == town.texts
    assert victim.process.poll() is None
    town.expect_all_is_well(epoch)


def test_what_is_said_again_is_not_heard(town: Town) -> None:
    """Results and steps of an old plan, and results of steps that are done, by whoever may send some."""
    epoch = town.epoch
    with (
        GreedyStreams(town.server, PROMPTS, TOKENS) as streams,
        rogue(FIRST, town.first.keys()) as first,
        rogue(LAST, town.last.keys()) as last,
        last.talking_to(town.line.public_key, town.server.port + 1) as results,
        first.talking_to(town.line.public_key, town.server.port + 1) as others_results,
        first.talking_to(town.last.keys().public_key, *town.last.ports()) as steps,
    ):
        for step_id in range(1, 40):
            for result_epoch in (epoch - 1, epoch):
                old = replace(old_result(result_epoch), step_id=step_id)
                send_all(results, [[encode(old)]])
                send_all(others_results, [[encode(old)]])
            old_step = a_step(epoch - 1, step_id, (1, HIDDEN_SIZE))
            send_all(steps, [[encode(old_step), bytes(2 * HIDDEN_SIZE)]])
        send_all(results, [[encode(replace(old_result(epoch), step_id=1 << 40))]])
        assert streams.texts() == town.texts
        said = f"{FIRST} sent the result of a step, which the last stage sends"
        assert eventually(lambda: said in town.server.complaints(), 5)
        assert eventually(lambda: "was never sent" in town.server.complaints(), 5)
    assert "dropped a Step of epoch" in town.last.log()
    town.expect_all_is_well(epoch)


# -------------------------------------------------------------------------------------------------- listening in


def test_nobody_on_the_way_can_read_along(town: Town) -> None:
    """Proxies between the last stage and the server; for root, all that comes to workers, as the kernel sees it."""
    needles = plain_needles()
    wire: Wire | None = None
    with ExitStack() as stack:
        if can_listen_in():
            wire = stack.enter_context(Wire((*town.first.ports(), *town.last.ports())))
        assert greedy_texts(town.server, [SECRET_IDS * 8], TOKENS)
    at_the_proxies = bytes(town.door.to_target + town.inbox.to_target + town.inbox.from_target)
    assert at_the_proxies.count(b"\x07MESSAGE") > TOKENS  # CURVE's word for what is in each encrypted frame
    assert not [needle for needle in needles if needle in at_the_proxies]
    if wire is not None:
        everywhere = bytes(wire.recorded)
        assert len(everywhere) > 64 * 2 * HIDDEN_SIZE  # the hidden states of the prompt are in there
        assert everywhere.count(b"\x07MESSAGE") > 2 * TOKENS
        assert not [needle for needle in needles if needle in everywhere]
        noise = re.sub(rb"\x07MESSAGE.{8}", b"", everywhere, flags=re.DOTALL)  # without the counters
        assert len(zlib.compress(noise)) > 0.95 * len(noise)


def plain_needles() -> list[bytes]:
    """What stands in unencrypted messages: names of fields and messages, and a prompt."""
    ids = msgspec.msgpack.encode(SECRET_IDS)[1:]  # behind the length
    sequence = SequenceStep(sequence_id=1, start=0, num_tokens=64, prompt_length=64, token_ids=SECRET_IDS * 8)
    step = encode(Step(epoch=1, plan=StepPlan(step_id=1, slot=0, sequences=(sequence,))))
    assert ids in step
    assert b"token_ids" in step
    assert b"Result" in encode(Result(epoch=1, step_id=1, samples=(), timings=()))
    return [ids, b"token_ids", b"step_id", b"Result", b"Heartbeat", b"bfloat16"]


# --------------------------------------------------------------------------- what the cluster has to recover from


def test_hidden_states_of_another_shape_are_refused(town: Town) -> None:
    """By the one who may send steps: that worker cannot be told from a broken one, so the plan is left."""
    epoch = town.epoch
    with (
        rogue(FIRST, town.first.keys()) as first,
        first.talking_to(town.last.keys().public_key, *town.last.ports()) as outbox,
    ):
        send_all(outbox, [[encode(a_step(epoch, 10**6, (2, 64))), bytes(2 * 2 * 64)]])
        said = (
            f"{FIRST} sent step 1000000 with a hidden state of bfloat16 [2, 64] where the plan says bfloat16 [2, 576]"
        )
        assert eventually(lambda: said in town.server.complaints() + town.server.status().detail, 5)
    town.server.wait_for(LAST, "ready")  # it is let in again as soon as it has noticed
    assert greedy_texts(town.server, PROMPTS, TOKENS) == town.texts
    town.expect_no_crash()


def test_who_is_revoked_is_out_and_cannot_return(town: Town) -> None:
    with GreedyStreams(town.server, PROMPTS, 900) as streams:
        streams.wait_until_reading()
        assert "revoked worker last" in town.server.manage_tokens("revoke", LAST)
        assert eventually(lambda: phase_of(town, LAST) == "lost", 2)
        assert all(f"worker {LAST} failed: its key was revoked" in str(error) for error in streams.failures())
    town.last.start_anew()
    assert town.last.process.wait(PATIENCE_S) == 1
    assert f"the key of this worker ({LAST}) was revoked" in town.last.log()
    with JoinedWorker("another", town.folder / "another", town.server.line):
        town.server.wait_for("another", "ready")
        assert greedy_texts(town.server, PROMPTS, TOKENS) == town.texts
    town.expect_no_crash()


def phase_of(town: Town, name: str) -> str:
    worker = town.server.worker(name)
    return worker.phase if worker else ""
