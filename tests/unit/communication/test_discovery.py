"""Finding a coordinator by mDNS, over the loopback interface of this machine."""

from __future__ import annotations

import builtins
import socket
from typing import Any

import pytest

from butterfly.communication import KeyPair
from butterfly.communication.identity import Found, JoinSecret, advertise, choose, find, make_secret
from butterfly.errors import ConfigError, PeerTimeoutError

PATIENCE_S = 15.0
HERE = ("127.0.0.1",)
SHOWN = JoinSecret(KeyPair.generate().public_key, make_secret())


def found(public_key: str, host: str = "10.0.0.9") -> Found:
    return Found(name="studio", host=host, port=7700, public_key=public_key, model="smollm2")


def test_what_is_advertised_is_found() -> None:
    pytest.importorskip("zeroconf")
    with advertise("127.0.0.1", 7700, SHOWN.public_key, "a model\x1b" + "\N{GREEK SMALL LETTER ALPHA}" * 500, HERE):
        ours = {one.public_key: one for one in find(PATIENCE_S, SHOWN.public_key, HERE)}[SHOWN.public_key]
    assert (ours.host, ours.port) == ("127.0.0.1", 7700)
    assert ours.model.startswith("a model?\N{GREEK SMALL LETTER ALPHA}")
    assert choose([ours], SHOWN, PATIENCE_S).address == "127.0.0.1:7700"
    assert SHOWN.secret not in repr(ours)


def test_two_coordinators_of_one_host_are_both_found() -> None:
    pytest.importorskip("zeroconf")
    other = KeyPair.generate().public_key
    with advertise("127.0.0.1", 7700, other, "a", HERE), advertise("127.0.0.1", 7800, SHOWN.public_key, "b", HERE):
        assert choose(find(PATIENCE_S, SHOWN.public_key, HERE), SHOWN, PATIENCE_S).port == 7800
        assert choose(find(PATIENCE_S, other, HERE), JoinSecret(other, make_secret()), PATIENCE_S).port == 7700


def test_who_does_not_keep_to_our_form_is_not_found() -> None:
    zeroconf = pytest.importorskip("zeroconf")
    info = zeroconf.ServiceInfo(
        "_butterfly._tcp.local.",
        "rude._butterfly._tcp.local.",
        port=1,
        addresses=[socket.inet_aton("127.0.0.1")],
        properties={b"\xff\xfe": b"\xff", b"model": None},
        server="rude.local.",
    )
    speaking = zeroconf.Zeroconf(interfaces=list(HERE))
    try:
        speaking.register_service(info)
        assert "rude" not in {one.name.partition(".")[0] for one in find(1.0, "", HERE)}
    finally:
        speaking.close()


def test_a_coordinator_with_another_key_is_refused() -> None:
    """Anybody may claim to be the coordinator; only who has its key is shown the secret."""
    with pytest.raises(ConfigError, match=r"whose keys are others: 10\.0\.0\.9:7700 \(smollm2\)") as caught:
        choose([found(KeyPair.generate().public_key)], SHOWN, 5.0)
    assert SHOWN.secret not in str(caught.value)
    line = choose([found(KeyPair.generate().public_key), found(SHOWN.public_key, "fe80::1")], SHOWN, 5.0)
    assert (line.address, line.secret) == ("[fe80::1]:7700", SHOWN.secret)


def test_nobody_is_a_timeout() -> None:
    with pytest.raises(PeerTimeoutError, match="no coordinator answered on this network within 5 s"):
        choose([], SHOWN, 5.0)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_zeroconf(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "zeroconf":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_zeroconf)
    with pytest.raises(ConfigError, match=r"pip install 'butterfly-inference\[discovery\]'"):
        find(0.1)
    with pytest.raises(ConfigError, match="discovery"), advertise("127.0.0.1", 7700, SHOWN.public_key, "m"):
        pass
