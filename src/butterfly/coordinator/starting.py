"""How the coordinator's own workers come to be: keys for this run, let in, and a process that gets them."""

from __future__ import annotations

from butterfly.cluster import Launcher
from butterfly.communication import KeyPair, Transport
from butterfly.messages import Invitation, PeerAddress


def start_worker(name: str, coordinator: PeerAddress, transport: Transport, launcher: Launcher) -> None:
    """Start a worker that proves its own new key, and knows ours. Raises LaunchError."""
    keys = KeyPair.generate()
    transport.admit(name, keys.public_key)
    launcher.start(
        Invitation(name=name, coordinator=coordinator, public_key=keys.public_key, secret_key=keys.secret_key)
    )
