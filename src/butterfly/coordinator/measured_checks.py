"""What workers say of themselves and their links, checked before a plan is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite

from butterfly.errors import ProtocolError
from butterfly.specs import ComputeProfile, LinkSpec, TimeTable


def check_profile(profile: ComputeProfile, num_kinds: int, worker: str) -> None:
    """Raise ProtocolError naming the worker unless every table is a grid of seconds, one pair for each kind."""
    if len(profile.layers) != num_kinds:
        raise _wrong(worker, f"a profile of {len(profile.layers)} kinds of layers, where the model has {num_kinds}")
    tables = [profile.head, *(table for layer in profile.layers for table in (layer.decode, layer.prefill))]
    if not all(_is_grid(table) for table in tables) or not _is_time(profile.step_s):
        raise _wrong(worker, "a profile that is no grid of times")


def check_links(links: Sequence[LinkSpec], peers: Sequence[str], worker: str) -> None:
    """Raise ProtocolError naming the worker unless these are its links to these peers, one each."""
    ends = [(link.source, link.target) for link in links]
    if sorted(ends) != sorted((worker, peer) for peer in peers):
        raise _wrong(worker, f"the links {ends}, where those to {list(peers)} were asked for")
    for link in links:
        times = _is_time(link.latency_s) and _is_time(link.software_s)
        if not times or not isfinite(link.bandwidth_bytes_per_s) or link.bandwidth_bytes_per_s <= 0:
            raise _wrong(worker, f"a link that cannot be: {link}")


def _is_grid(table: TimeTable) -> bool:
    has_axes = all(_is_ascending(axis) for axis in (table.num_tokens, table.contexts))
    is_full = [len(row) for row in table.seconds] == [len(table.num_tokens)] * len(table.contexts)
    return has_axes and is_full and all(_is_time(seconds) for row in table.seconds for seconds in row)


def _is_ascending(axis: Sequence[int]) -> bool:
    return len(axis) > 0 and axis[0] >= 0 and all(a < b for a, b in pairwise(axis))


def _is_time(seconds: float) -> bool:
    return isfinite(seconds) and seconds >= 0


def _wrong(worker: str, what: str) -> ProtocolError:
    return ProtocolError(f"{worker} sent {what}", worker)
