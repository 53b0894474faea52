"""Tensors on this machine: found by digest in files that are here already, or fetched into a cache.

Promises: `TensorSource.locate` returns entries whose bytes are on this machine and are the coordinator's, digest by
digest, whatever a source or a file claims; what was fetched before a crash need not be fetched again; the cache stays
within its limit and never loses what a worker of this machine holds; every failure says what is needed, what there
is, where, and which option helps.

Must not know: what tensors are for, how they are computed with.

One-hour change: another place to look for bytes is a line in `source.TensorSource._find_here`.
"""

from butterfly.worker.tensors.cache import TensorCache
from butterfly.worker.tensors.fetching import FetchTimeouts
from butterfly.worker.tensors.source import TensorSource

__all__ = ["FetchTimeouts", "TensorCache", "TensorSource"]
