from __future__ import annotations

import os
from pathlib import Path

import pytest

from butterfly.communication import KeyPair
from butterfly.errors import ConfigError
from butterfly.messages import Invitation, PeerAddress, encode_invitation
from butterfly.worker import read_invitation, write_invitation


@pytest.fixture
def invitation() -> Invitation:
    home, keys = KeyPair.generate(), KeyPair.generate()
    address = PeerAddress(name="coordinator", endpoint="tcp://127.0.0.1:5", public_key=home.public_key)
    return Invitation(name="w0", coordinator=address, public_key=keys.public_key, secret_key=keys.secret_key)


def test_a_file_round_trip_that_only_the_owner_can_read(tmp_path: Path, invitation: Invitation) -> None:
    path = tmp_path / "invitation.json"
    write_invitation(invitation, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_invitation(path) == invitation
    with pytest.raises(ConfigError, match="File exists"):
        write_invitation(invitation, path)


def test_standard_input_gives_one_line_and_keeps_the_rest(invitation: Invitation) -> None:
    reader, writer = os.pipe()
    os.write(writer, encode_invitation(invitation) + b"rest")
    assert read_invitation("-", reader) == invitation
    assert os.read(reader, 100) == b"rest"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(mode: int, tmp_path: Path, invitation: Invitation) -> None:
    path = tmp_path / "invitation.json"
    write_invitation(invitation, path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_invitation(path)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_invitation(tmp_path / "none")


@pytest.mark.parametrize("cut", [0, 1, 60, -2])
def test_a_truncated_invitation_is_refused_without_quoting_it(cut: int, tmp_path: Path, invitation: Invitation) -> None:
    path = tmp_path / "invitation.json"
    path.touch(0o600)
    path.write_bytes(encode_invitation(invitation)[:cut])
    with pytest.raises(ConfigError, match="no valid invitation") as caught:
        read_invitation(path)
    assert caught.value.__cause__ is None
    assert invitation.secret_key not in str(caught.value)


def test_keys_that_do_not_match_are_refused(invitation: Invitation) -> None:
    reader, writer = os.pipe()
    line = encode_invitation(invitation).replace(invitation.public_key.encode(), KeyPair.generate().public_key.encode())
    os.write(writer, line)
    os.close(writer)
    with pytest.raises(ConfigError, match="belong together"):
        read_invitation("-", reader)
    os.close(reader)
