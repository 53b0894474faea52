"""Profiles that were measured here before: found again by all that they depend on, whatever the model is called."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec.structs import replace

from butterfly.messages import Profile
from butterfly.specs import ComputeProfile, LayerSpec, Spec
from butterfly.worker.profile_points import ENOUGH_CONTEXT
from butterfly.worker.profiling import Profiler, Report

logger = logging.getLogger(__name__)

FORMAT = 3  # to be raised whenever profiles are measured in another way

_Facts = Mapping[str, str | int | float | None]


class _Stored(Spec, frozen=True):
    """The content of a file; `node` is for people who look into it."""

    node: dict[str, str | int | float | None]
    profile: ComputeProfile


class _Shape(Spec, frozen=True):
    """What of a request decides about times."""

    format: int
    node: dict[str, str | int | float | None]
    request: Profile


class CachedProfiler:
    """Measures once. `node` is what times depend on beside the model: hardware, threads, versions.

    A file that cannot be read is measured anew, and a folder that cannot be written is done without.
    """

    def __init__(self, profiler: Profiler, node: _Facts, folder: Path, *, refresh: bool = False) -> None:
        """`refresh` measures in any case, and keeps the new profile."""
        self._profiler, self._node, self._folder, self._refresh = profiler, dict(node), folder, refresh

    def profile(self, request: Profile, report: Report) -> ComputeProfile:
        """As the profiler does it, or did."""
        path = self._folder / f"{self._key(request)}.json"
        stored = None if self._refresh else _read(path)
        if stored is not None and len(stored.profile.layers) == len(request.layers):
            logger.info("took the profile from %s", path)
            return stored.profile
        profile = self._profiler.profile(request, report)
        _write(path, _Stored(node=self._node, profile=profile))
        return profile

    def _key(self, request: Profile) -> str:
        shape = _Shape(format=FORMAT, node=self._node, request=_without_names(request))
        return hashlib.sha256(msgspec.json.encode(shape, order="deterministic")).hexdigest()[:32]


def _without_names(request: Profile) -> Profile:
    """The same request for every model of this shape, wherever its files are and whatever its weights."""
    layers = tuple(replace(request.model.layers[layer], rope=0) for layer in request.layers)
    rest = (LayerSpec(),) * (request.model.num_layers - len(layers))  # how many there are is part of the shape
    tensors = tuple(replace(entry, file="", offset=0, seed=0, add=0.0) for entry in request.tensors)
    return replace(
        request,
        epoch=0,
        sources=(),
        model=replace(
            request.model,
            name="",
            family="",
            ropes=(),
            layers=layers + rest,
            max_context=min(request.model.max_context, ENOUGH_CONTEXT),
        ),
        tensors=tensors,
    )


def _read(path: Path) -> _Stored | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Stored)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("cannot use the profile in %s, measuring again: %s", path, error)
        return None


def _write(path: Path, stored: _Stored) -> None:
    """Whoever reads the file sees all of it or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(stored)))
            temporary.replace(path)
    except OSError as error:
        logger.warning("cannot keep the profile in %s: %s", path, error)
