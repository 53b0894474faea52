"""The identity of a process: one CURVE key pair, as Z85 text."""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq

from butterfly.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key of 40 Z85 characters each. The secret never shows in a repr."""

    public_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        public_key, secret_key = zmq.curve_keypair()
        return cls(public_key.decode("ascii"), secret_key.decode("ascii"))

    def check(self) -> None:
        """Raise ConfigError unless both are keys and belong together."""
        try:
            derived = zmq.curve_public(self.secret_key.encode("ascii"))
        except (ValueError, zmq.ZMQError) as error:
            raise ConfigError("the secret key is not a CURVE key of 40 Z85 characters") from error
        if derived.decode("ascii") != self.public_key:
            raise ConfigError("the public key and the secret key do not belong together")
