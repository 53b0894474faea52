from __future__ import annotations

import pytest

from butterfly.communication import KeyPair, ZmqTransport
from butterfly.errors import ConfigError


def test_generated_pairs_are_valid_and_differ() -> None:
    first, second = KeyPair.generate(), KeyPair.generate()
    first.check()
    assert first != second
    assert len(first.public_key) == len(first.secret_key) == 40


def test_the_secret_does_not_show() -> None:
    keys = KeyPair.generate()
    assert keys.secret_key not in repr(keys)
    assert keys.public_key in repr(keys)


@pytest.mark.parametrize("secret", ["", "too short", "ü" * 40, '"' * 40])
def test_what_is_no_key_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="secret key"):
        KeyPair(KeyPair.generate().public_key, secret).check()


def test_keys_of_different_pairs_are_refused() -> None:
    keys = KeyPair(KeyPair.generate().public_key, KeyPair.generate().secret_key)
    with pytest.raises(ConfigError, match="belong together"):
        ZmqTransport("worker", keys)
