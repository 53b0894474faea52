from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from butterfly.communication import KeyPair
from butterfly.communication.identity import (
    JoinLine,
    make_secret,
    parse_address,
    parse_join_line,
    parse_join_secret,
)
from butterfly.errors import ConfigError

SECRET = "s3cr3t-s3cr3t_s3cr3t-s3cr3t"
LINE = JoinLine(host="studio.local", port=7700, public_key=z85.encode(bytes(range(32))).decode(), secret=SECRET)
KEY = LINE.text.partition("#")[2].partition(".")[0]

hosts = st.one_of(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True),
    st.ip_addresses().map(str),
)
keys = st.binary(min_size=32, max_size=32).map(lambda raw: z85.encode(raw).decode("ascii"))
secrets = st.from_regex(r"[A-Za-z0-9_-]{22,64}", fullmatch=True)


@given(hosts, st.integers(1, 65535), keys, secrets)
def test_what_is_written_is_read_again(host: str, port: int, public_key: str, secret: str) -> None:
    line = JoinLine(host=host, port=port, public_key=public_key, secret=secret)
    assert parse_join_line(f" {line.text}\n") == line
    shown = parse_join_secret(line.text)
    assert (shown.public_key, shown.secret) == (public_key, secret)
    assert parse_join_secret(shown.text) == shown
    assert parse_address(line.address) == (host, port)


def test_nothing_in_it_needs_quotes() -> None:
    lines = [JoinLine("h", 1, KeyPair.generate().public_key, make_secret()).text for _ in range(50)]
    assert all(set(line.partition("#")[2]) <= set(base64_alphabet()) | {"."} for line in lines)


def base64_alphabet() -> str:
    return base64.urlsafe_b64encode(bytes(range(256))).decode() + "-_"


def test_where_to_knock() -> None:
    assert LINE.door.endpoint == "tcp://studio.local:7700"
    assert LINE.door.public_key == LINE.public_key
    assert JoinLine("fe80::1%eth0", 7, LINE.public_key, SECRET).door.endpoint == "tcp://[fe80::1%eth0]:7"


def test_the_secret_does_not_show() -> None:
    assert SECRET not in f"{LINE} {LINE!r} {parse_join_secret(LINE.text)!r} {LINE.door!r}"


def test_secrets_are_long_enough_and_differ() -> None:
    made = {make_secret() for _ in range(100)}
    assert len(made) == 100
    assert min(len(base64.urlsafe_b64decode(secret)) for secret in made) >= 16


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "begins with butterfly://"),
        ("http://h:1#k.s", "begins with butterfly://"),
        ("butterfly://studio.local:7700", "has no '#'"),
        (f"butterfly://studio.local#{KEY}.{SECRET}", "'studio.local' is no address"),
        (f"butterfly://::1:7700#{KEY}.{SECRET}", "in brackets"),
        (f"butterfly://user@h:7700#{KEY}.{SECRET}", "is no address"),
        (f"butterfly://h:7700/path#{KEY}.{SECRET}", "is no address"),
        (f"butterfly://h:0#{KEY}.{SECRET}", "no port between"),
        (f"butterfly://h:70000#{KEY}.{SECRET}", "no port between"),
        (f"butterfly://h:7700#{KEY}", "no '.' between"),
        (f"butterfly://h:7700#{KEY[:-1]}.{SECRET}", "not 32 bytes as base64url"),
        (f"butterfly://h:7700#{KEY[:-1]}!.{SECRET}", "not 32 bytes as base64url"),
        (f"butterfly://h:7700#{KEY}AAAA.{SECRET}", "not 32 bytes as base64url"),
        (f"butterfly://h:7700#A.{SECRET}", "not 32 bytes as base64url"),
        (f"butterfly://h:7700#{KEY}.{SECRET[:10]}", "has 10 characters"),
        (f"butterfly://h:7700#{KEY}.{SECRET} more", "not base64url"),
        (f"butterfly://h:7700#{KEY}.{SECRET * 20}", "was it cut"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_join_line(line)
    assert words in str(caught.value)
    assert SECRET[:10] not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_line_or_an_error(text: str) -> None:
    for line in (text, "butterfly://" + text, f"butterfly://h:1#{text}"):
        try:
            assert parse_join_line(line).secret
        except ConfigError:
            continue


def test_a_secret_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key in front") as caught:
        parse_join_secret(SECRET)
    assert SECRET not in str(caught.value)
