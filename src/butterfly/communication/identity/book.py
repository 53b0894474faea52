"""Who may come in: join tokens, and the keys of workers that came in by them. Plain values; times are Unix time.

A token admits keys; a key, once in, is known by itself. So a token that has expired keeps new workers out but not those
that it let in, and a token that is revoked takes all that it let in with it. A worker that was revoked by name stays
out whatever it shows; one whose token was revoked may come back by another token.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
from collections.abc import Callable

from msgspec.structs import replace

from butterfly.communication.identity.names import numbered
from butterfly.errors import ConfigError
from butterfly.specs import Spec

_MAX_WORKERS = 4096  # keys that are kept; beyond, the one not seen for longest is forgotten


class JoinToken(Spec, frozen=True):
    """A secret that lets workers in. The secret itself is not kept, so it cannot be shown again."""

    id: str
    secret_digest: str  # see digest_of
    created_s: float
    note: str = ""
    expires_s: float | None = None  # None: never
    revoked_s: float | None = None
    num_uses: int = 0  # how often somebody was welcomed by it

    def has_expired(self, now_s: float) -> bool:
        return self.expires_s is not None and now_s >= self.expires_s

    def is_valid(self, now_s: float) -> bool:
        """Whether new workers may come in by it."""
        return self.revoked_s is None and not self.has_expired(now_s)


class AdmittedWorker(Spec, frozen=True):
    """A key that came in, and its name from then on."""

    public_key: str
    name: str
    token_id: str  # by which it came in last
    host: str  # as it said
    first_seen_s: float
    last_seen_s: float  # when it knocked last
    revoked_s: float | None = None  # it by itself; see Book.is_out


class Book(Spec, frozen=True):
    """All tokens and workers. Every change makes a new book."""

    tokens: tuple[JoinToken, ...] = ()
    workers: tuple[AdmittedWorker, ...] = ()

    def token_of(self, secret: str) -> JoinToken | None:
        """Return the token with this secret. Takes the same time whichever it is, and how close to it."""
        asked, found = digest_of(secret), None
        for token in self.tokens:  # all of them, and as digests: no length and no order to measure
            if hmac.compare_digest(asked, token.secret_digest):
                found = token
        return found

    def worker_of(self, public_key: str) -> AdmittedWorker | None:
        return next((worker for worker in self.workers if worker.public_key == public_key), None)

    def is_out(self, worker: AdmittedWorker) -> bool:
        """Whether the worker, or the token by which it came, was revoked."""
        return worker.revoked_s is not None or worker.token_id not in self._live_tokens()

    def name_for(self, public_key: str, wanted: str, is_reserved: Callable[[str], bool]) -> str:
        """Return the name that this key has, or else the wanted one, numbered when another worker has it."""
        live = self._live_tokens()
        others = (worker for worker in self.workers if worker.public_key != public_key)
        taken = {other.name for other in others if other.revoked_s is None and other.token_id in live}
        known = self.worker_of(public_key)
        numbers = (numbered(wanted, number) for number in itertools.count(1))
        candidates = itertools.chain([known.name] if known else [], numbers)
        return next(name for name in candidates if name not in taken and not is_reserved(name))

    def with_token(self, token: JoinToken) -> Book:
        return replace(self, tokens=(*self.tokens, token))

    def with_welcomed(self, public_key: str, name: str, token_id: str, host: str, now_s: float) -> Book:
        """Note that this key came in by this token, as this worker."""
        known = self.worker_of(public_key)
        worker = AdmittedWorker(
            public_key=public_key,
            name=name,
            token_id=token_id,
            host=host,
            first_seen_s=known.first_seen_s if known else now_s,
            last_seen_s=now_s,
        )
        others = tuple(other for other in self.workers if other.public_key != public_key)
        tokens = tuple(
            replace(token, num_uses=token.num_uses + 1) if token.id == token_id else token for token in self.tokens
        )
        return replace(self, tokens=tokens, workers=_the_latest((*others, worker)))

    def with_revoked(self, id_or_name: str, now_s: float) -> Book:
        """Revoke the token with this id, or the worker with this name. Again changes nothing. Raises ConfigError."""
        is_token = any(token.id == id_or_name for token in self.tokens)
        is_worker = any(worker.name == id_or_name for worker in self.workers)
        if is_token and is_worker:
            raise ConfigError(f"{id_or_name} is a token and also a worker: revoke the token by which the worker came")
        if not is_token and not is_worker:
            raise ConfigError(f"there is no token and no worker {id_or_name!r}; see `butterfly token list`")
        tokens = tuple(
            replace(token, revoked_s=now_s) if token.id == id_or_name and token.revoked_s is None else token
            for token in self.tokens
        )
        workers = tuple(
            replace(worker, revoked_s=now_s) if worker.name == id_or_name and worker.revoked_s is None else worker
            for worker in self.workers
        )
        return replace(self, tokens=tokens, workers=workers)

    def _live_tokens(self) -> set[str]:
        return {token.id for token in self.tokens if token.revoked_s is None}


def digest_of(secret: str) -> str:
    """Return what is kept of a secret. Unsalted and fast: nobody finds 128 random bits by trying."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_token(secret: str, now_s: float, *, note: str = "", expires_s: float | None = None) -> JoinToken:
    """Return a token for this secret, under a random id."""
    return JoinToken(
        id=secrets.token_hex(4), secret_digest=digest_of(secret), created_s=now_s, note=note, expires_s=expires_s
    )


def _the_latest(workers: tuple[AdmittedWorker, ...]) -> tuple[AdmittedWorker, ...]:
    """Bound their number, but never forget that one was revoked."""
    if len(workers) <= _MAX_WORKERS:
        return workers
    oldest = min((worker for worker in workers if worker.revoked_s is None), key=lambda worker: worker.last_seen_s)
    return tuple(worker for worker in workers if worker is not oldest)
