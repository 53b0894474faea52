"""The certificate and key of an HTTPS server, checked before anything else is started."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from butterfly.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Two PEM files: the certificate, with its chain behind it, and its private key without passphrase.

    Raises ConfigError unless both can be read and belong together.
    """

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for path, option in ((self.certificate, "--ssl-certfile"), (self.key, "--ssl-keyfile")):
            _check_readable(path, option)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=self._refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"{self.key} is not the private key of the certificate in {self.certificate}"
                ) from error
            raise ConfigError(
                f"{self.certificate} and {self.key} are no certificate and private key in PEM form; "
                "check --ssl-certfile and --ssl-keyfile"
            ) from error

    def _refuse_passphrase(self) -> NoReturn:
        # Without this the library would ask on the terminal, if there is one.
        raise ConfigError(f"{self.key} has a passphrase; give a key without: openssl pkey -in {self.key} -out FILE")


def _check_readable(path: Path, option: str) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check {option}") from error
