"""Who is who, and who lets whom in: the join line, the coordinator's kept keys and tokens, a worker's kept keys.

Promises: secrets are kept as digests, but for the server's own in a file that only the owner reads; no secret is in a
repr, an error or a log; a file is there whole or not at all, and one writer at a time changes it; a damaged file is an
error that names it; a coordinator and a worker that start again are who they were.

Must not know: workers, plans, the command line. Answering a knock is the coordinator's (`coordinator.admission`),
knocking the worker's (`worker.joining`).

One-hour change: what is kept of a token is a field of `book.JoinToken` and a column of `cli.token`; another way of
finding coordinators is a file like `discovery`.
"""

from butterfly.communication.identity.book import AdmittedWorker, Book, JoinToken, make_token
from butterfly.communication.identity.book_file import BookFile
from butterfly.communication.identity.coordinator_state import CoordinatorState
from butterfly.communication.identity.discovery import Found, advertise, choose, find
from butterfly.communication.identity.join_line import (
    JoinLine,
    JoinSecret,
    format_address,
    make_secret,
    parse_address,
    parse_join_line,
    parse_join_secret,
)
from butterfly.communication.identity.kept_keys import worker_keys
from butterfly.communication.identity.names import NAME_RULE, is_name, name_from

__all__ = [
    "AdmittedWorker",
    "Book",
    "BookFile",
    "CoordinatorState",
    "Found",
    "JoinLine",
    "JoinSecret",
    "JoinToken",
    "NAME_RULE",
    "advertise",
    "choose",
    "find",
    "format_address",
    "is_name",
    "make_secret",
    "make_token",
    "name_from",
    "parse_address",
    "parse_join_line",
    "parse_join_secret",
    "worker_keys",
]
