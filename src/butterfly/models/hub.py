"""Models from the Hugging Face hub: only the files that are needed, kept in the hub's own cache."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from butterfly.errors import ModelFormatError, ModelNotFoundError
from butterfly.models.packages import Progress
from butterfly.models.safetensors_file import INDEX_FILE, SINGLE_FILE

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*?)(?::(?P<file>[^:]+\.gguf))?")

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX_FILE,
)
_SHARDS = "model-*-of-*.safetensors"
_HUB_TIMEOUT_S = 20.0


def parse_hub_id(reference: str) -> tuple[str, str | None] | None:
    """Return (`org/name`, GGUF file or None) when `reference` has the form of a hub id, else None."""
    match = _HUB_ID.fullmatch(reference)
    if match is None or match["repo"].endswith((".gguf", ".safetensors", ".")):
        return None
    return match["repo"], match["file"]


def needed_files(repo: str, available: list[str], file: str | None) -> list[str]:
    """Return the files of a repository that running it takes: one GGUF file, or config + safetensors.

    Raises ModelNotFoundError when the named file is not there, ModelFormatError when there is nothing
    that can be run or the choice among GGUF files is open.
    """
    if file is not None:
        if file not in available:
            raise ModelNotFoundError(f"{repo}: no file {file} there{_listing(available)}")
        return [file]
    weights = [SINGLE_FILE] if SINGLE_FILE in available else [n for n in available if fnmatch(n, _SHARDS)]
    if weights and "config.json" in available:
        return [name for name in available if name in SMALL_FILES or name in weights]
    ggufs = [name for name in available if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise ModelFormatError(f"{repo} holds several GGUF files, choose one: {repo}:FILE{_listing(available)}")
    raise ModelFormatError(f"{repo} holds neither safetensors with a config.json nor a GGUF file")


def _listing(available: list[str]) -> str:
    ggufs = [name for name in available if name.endswith(".gguf")]
    return f" (GGUF files: {', '.join(ggufs)})" if ggufs else ""


def download(repo: str, file: str | None, progress: Progress | None = None) -> Path:
    """Return the local GGUF file or model folder of a hub repository, downloading what is not cached.

    Raises ModelNotFoundError, in one line, when the hub cannot be reached or refuses.
    """
    import huggingface_hub  # here, because it is slow to import and most models need no hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    # The hub's own errors derive from the error base of whichever HTTP library it is built on, and
    # that is what connection failures are.
    failures = (*HfHubHTTPError.__bases__, EntryNotFoundError, HFValidationError, OSError)
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=_HUB_TIMEOUT_S)
    except failures as error:
        cached = _cached(repo, file)
        if cached is not None:
            return cached
        raise ModelNotFoundError(f"{repo}: the hub does not give it: {_first_line(error)}") from error
    sizes = {sibling.rfilename: int(sibling.size or 0) for sibling in info.siblings or ()}
    names = needed_files(repo, sorted(sizes), file)
    done, local = _Done(progress, f"downloading {repo}", sum(sizes[name] for name in names)), Path()
    for name in names:
        try:
            bar = done.bar_class(sizes[name])
            local = Path(huggingface_hub.hf_hub_download(repo, name, tqdm_class=bar))
        except failures as error:
            raise ModelNotFoundError(f"{repo}: cannot download {name}: {_first_line(error)}") from error
        done.finish(sizes[name])
    return local if names[0].endswith(".gguf") else local.parent


class _Done:
    """Adds the files of one download up to one figure."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self.progress = progress
        self.what = what
        self.total = total
        self.before = 0  # bytes of the files that are complete
        self.report(0)

    def report(self, within_file: int) -> None:
        if self.progress:
            self.progress(self.what, self.before + within_file, self.total)

    def finish(self, size: int) -> None:
        self.before += size
        self.report(0)

    def bar_class(self, size: int) -> type:
        """Return what the hub library takes for a progress bar: it draws nothing and reports here.

        The library may give one file two bars (bytes received, bytes written), hence the maximum.
        """
        from huggingface_hub.utils import tqdm

        most = [0]

        class Bar(tqdm):  # type: ignore[misc]
            def __init__(bar, *args: object, **options: object) -> None:
                super().__init__(*args, **{**options, "disable": True})
                bar.seen = int(bar.n)

            def update(bar, n: float | None = 1) -> None:
                bar.seen += int(n or 0)
                most[0] = min(max(most[0], bar.seen), size)
                self.report(most[0])

        return Bar


def _cached(repo: str, file: str | None) -> Path | None:
    """Return what an earlier download left, when it is whole enough to open."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file or "config.json")
    if not isinstance(path, str):
        return None
    if file is not None:
        return Path(path)
    folder = Path(path).parent
    return folder if any(folder.glob("model*.safetensors")) else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def is_plain_path(reference: str) -> bool:
    """Say whether a reference that names no file can only have been meant as a path."""
    if reference.startswith((".", "/", "~")) or "\\" in reference:
        return True
    return parse_hub_id(reference) is None or Path(PurePosixPath(reference).parts[0]).is_dir()
