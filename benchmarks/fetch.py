"""Ask one URL from where this process runs: `python fetch.py URL [--until-ready SECONDS]`.

A server in an emulated network is reachable only from inside it, so benchmarks run this file as a script there. It
needs the standard library alone, and so starts in a few milliseconds beside the server that it asks.
`tcp://HOST:PORT` asks only whether somebody listens.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import sys
import time
import urllib.request
from urllib.parse import urlsplit

_ASK_S = 10.0  # for one answer
_AGAIN_S = 0.02  # between two questions; the error of a load time


def get(url: str) -> bytes:
    """Return the body of the answer. Raises OSError or HTTPException when there is none, or an error status."""
    parts = urlsplit(url)
    if parts.scheme == "tcp":
        socket.create_connection((parts.hostname or "", parts.port or 0), _ASK_S).close()
        return b""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches an emulated network
    with opener.open(url, timeout=_ASK_S) as answer:
        return bytes(answer.read())


def get_when_ready(url: str, timeout_s: float) -> bytes:
    """Ask until there is an answer. Raises TimeoutError with the last refusal."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return get(url)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline_s:
                raise TimeoutError(f"{url} did not answer within {timeout_s:g} s: {error}") from error
        time.sleep(_AGAIN_S)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the body of the answer.")
    parser.add_argument("url")
    parser.add_argument("--until-ready", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args()
    try:
        body = get_when_ready(arguments.url, arguments.until_ready)
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
