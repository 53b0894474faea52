"""The address that peers can reach."""

from __future__ import annotations

import pytest

from butterfly.communication import local_host_towards
from butterfly.errors import CommunicationError


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5", "tcp://localhost:5"])
def test_the_way_to_this_machine_is_loopback(endpoint: str) -> None:
    assert local_host_towards(endpoint) in ("127.0.0.1", "::1")


@pytest.mark.parametrize("endpoint", ["tcp://no.such.host.invalid:5", "tcp://127.0.0.1:port"])
def test_no_way_is_an_error_that_names_the_endpoint(endpoint: str) -> None:
    with pytest.raises(CommunicationError, match="no way from here to tcp"):
        local_host_towards(endpoint)
