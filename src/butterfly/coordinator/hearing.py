"""What messages of workers mean to the cluster state: the events that they stand for."""

from __future__ import annotations

from collections import deque
from math import isfinite

from butterfly import cluster
from butterfly.errors import ProtocolError
from butterfly.messages import Heartbeat, Join, Leave, Loaded, LoadProgress, Message
from butterfly.specs import NodeSpec, Recovery

_REMEMBERED_MOVES = 8
_MOST_EPOCH = 1 << 62  # that is believed: what goes on from there must fit into a message, too


def event_of(message: Message, sender: str, now_s: float) -> cluster.Event | None:
    """The event that a message is, by itself; None for one that is something else."""
    match message:
        case Heartbeat():
            return cluster.WorkerBeat(
                now_s=now_s,
                worker=sender,
                resident_bytes=message.resident_bytes,
                kv_used_bytes=message.kv_used_bytes,
            )
        case Leave():
            return cluster.WorkerLeft(now_s=now_s, worker=sender, reason=message.reason)
        case LoadProgress():
            return cluster.WorkerLoadProgressed(
                now_s=now_s, worker=sender, loaded_bytes=message.loaded_bytes, total_bytes=message.total_bytes
            )
        case Loaded():
            return cluster.WorkerLoaded(now_s=now_s, worker=sender, weight_bytes=message.weight_bytes)
        case _:
            return None


def joined(join: Join, sender: str, now_s: float) -> cluster.WorkerJoined:
    """The event of a worker that joined. Raises ProtocolError for resources that no machine has."""
    rate = join.memory_bandwidth_bytes_per_s
    if join.memory_bytes <= 0 or not (isfinite(rate) and rate > 0) or join.last_epoch < 0:
        raise ProtocolError(
            f"{sender} joined with {join.memory_bytes} bytes, {rate} bytes/s and epoch {join.last_epoch}", sender
        )
    node = NodeSpec(name=sender, memory_bytes=join.memory_bytes, memory_bandwidth_bytes_per_s=rate, device=join.device)
    return cluster.WorkerJoined(
        now_s=now_s,
        worker=sender,
        node=node,
        host=join.host,
        pid=join.pid,
        last_epoch=min(join.last_epoch, _MOST_EPOCH),
    )


class Moves:
    """The last moves from plan to plan, oldest first."""

    def __init__(self) -> None:
        self._moves: deque[Recovery] = deque(maxlen=_REMEMBERED_MOVES)

    def note(self, newest: Recovery | None) -> tuple[Recovery, ...]:
        """Take in what is now known of the newest; return all."""
        if newest is not None:
            if self._moves and self._moves[-1].noticed_s == newest.noticed_s:
                self._moves.pop()
            self._moves.append(newest)
        return tuple(self._moves)
