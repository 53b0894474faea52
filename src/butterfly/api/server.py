"""The HTTP server around the application: a port held early, a clean stop, no logging of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI

from butterfly.api.tls import TlsFiles
from butterfly.errors import ConfigError

_BACKLOG = 2048
_FORCE_S = 5.0  # for what uvicorn does after it has cancelled the last call
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class BoundPort:
    """A port that is ours from now on, so that a wrong one is an error before any model loads.

    It listens at once: a port that is only bound can be bound by somebody else too. Clients that come
    early wait until a server takes over.
    """

    def __init__(self, host: str, port: int) -> None:
        """`port` 0 picks a free one. Raises ConfigError when the address cannot be had."""
        self.host = host
        self.socket = _listen(host, port)
        self.port: int = self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """The address a client on this machine uses, without TLS."""
        host = _WILDCARDS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: 127.0.0.0/8 or ::1, whatever name was asked for."""
        address = ipaddress.ip_address(self.socket.getsockname()[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address.is_loopback

    def close(self) -> None:
        """Give the port back. Idempotent."""
        self.socket.close()


class ApiServer:
    """Serves one application on one bound port, once, in this thread (`run`) or another (`start`)."""

    def __init__(
        self,
        app: FastAPI,
        port: BoundPort,
        *,
        handles_signals: bool = False,
        grace_s: int = 5,
        tls: TlsFiles | None = None,
    ) -> None:
        """`grace_s`: how long calls under way may go on after `stop`. `handles_signals` only works with
        `run` in the main thread: SIGINT and SIGTERM then mean `stop`. With `tls` it speaks HTTPS only."""
        self.bound_port = port
        self._grace_s = grace_s
        self._tls = tls
        self._server = _Server(_configuration(app, grace_s, tls), handles_signals=handles_signals)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address a client on this machine uses."""
        url = self.bound_port.url
        return url if self._tls is None else url.replace("http:", "https:", 1)

    def run(self) -> None:
        """Serve until `stop` is called or a signal comes (when handled). Closes the port."""
        try:
            with _without_cancellation_tracebacks():
                self._server.run(sockets=[self.bound_port.socket])
        finally:
            self.bound_port.close()

    def start(self) -> None:
        """Serve in a thread of its own. Returns at once; clients that come early wait in the port."""
        self._thread = threading.Thread(target=self.run, name="butterfly-api", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that `start` made still serves."""
        return self._thread is not None and self._thread.is_alive()

    def request_stop(self) -> None:
        """Ask the server to end, without waiting. Callable from any thread and from signal handlers."""
        self._server.should_exit = True

    def stop(self) -> bool:
        """End what `start` began: refuse new calls, let the others finish for `grace_s`, then cut them off.

        Returns whether the thread has ended, after `grace_s` and a few seconds at most. For `run`, which
        has no thread to wait for, use `request_stop`.
        """
        self.request_stop()
        if self._thread is None:
            return True
        self._thread.join(self._grace_s + _FORCE_S)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, handles_signals: bool) -> None:
        super().__init__(config)
        self._handles_signals = handles_signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever owns the process, unless asked."""
        if not self._handles_signals:
            yield
            return
        with super().capture_signals():
            yield


def _configuration(app: FastAPI, grace_s: int, tls: TlsFiles | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,  # the process decides what is logged and where
        access_log=False,
        proxy_headers=False,  # nothing here depends on the client's address
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=grace_s,
    )


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"{port} is not a port; --port takes 0 to 65535")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"cannot resolve host '{host}': {error.strerror}; check --host") from error
    # IPv4 first: "localhost" has both, and a client that tries ::1 falls back, but not the other way.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait for connections of the last run in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_bind_problem(error, host, port)) from error
    return listener


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; choose another with --port"
    if error.errno == errno.EACCES:
        return f"no permission to open port {port}; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; check --host"
    return f"cannot listen on {host} port {port}: {error.strerror}"


@contextlib.contextmanager
def _without_cancellation_tracebacks() -> Iterator[None]:
    """Calls that are cut off at the end of a stop are no accident: uvicorn would print their tracebacks."""
    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(_is_no_cancellation)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_cancellation)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
