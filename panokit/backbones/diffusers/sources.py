"""Where models come from: folders and files on this machine, and the hub. Only what is read is fetched."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from panokit.backbones.diffusers.parts import UNUSED, explained, quiet
from panokit.backbones.diffusers.weights import PICKLES, choice, named
from panokit.errors import ModelError
from panokit.family import is_path

CONFIGS = (".json", ".txt", ".model", ".jinja")
"""The ends of the files that say how a model is built, and hold vocabularies."""


def folder_of(source: str, *, revision: str | None = None, variant: str | None = None, weights: bool = True) -> Path:
    """The folder of a model on this machine. A model of the hub is fetched, and its pickles are left there.

    Args:
        source: a folder, or a hub id such as `owner/model`.
        revision: the branch, tag or commit on the hub.
        variant: the variant of the weights to fetch.
        weights: whether weights are fetched, too.

    Raises:
        ModelError: there is no such folder, and the hub does not give such a model.
    """
    if is_path(source) and Path(source).is_dir():
        return Path(source)

    def fetch() -> str:
        files = huggingface_hub.list_repo_files(source, revision=revision)
        index: Mapping[str, Any] = {}
        if "model_index.json" in files:
            path = huggingface_hub.hf_hub_download(source, "model_index.json", revision=revision)
            index = json.loads(Path(path).read_text(encoding="utf-8"))
        wanted = _wanted(files, index, variant, weights)
        return huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=wanted)

    def kept() -> str:
        return huggingface_hub.snapshot_download(source, revision=revision, local_files_only=True)

    return Path(_from_hub(source, fetch, kept))


def file_of(source: str, name: str | None = None, subfolder: str | None = None) -> Path:
    """A file of weights on this machine; one of the hub is fetched.

    Args:
        source: a file, a folder or a hub id.
        name: the name of the file, where the folder has several.
        subfolder: a folder in the source.

    Raises:
        ModelError: there is none, it is pickled, or it is not clear which file is meant.
    """
    path = Path(source)
    if is_path(source) and path.is_file():
        return _safe(path)
    if is_path(source):
        home = path / (subfolder or "")
        there = [file.name for file in home.iterdir()] if home.is_dir() else []
        return _safe(home / _the_file(there, name, str(home)))
    at = f"{subfolder}/" if subfolder else ""

    def fetch() -> str:
        files = [file.removeprefix(at) for file in huggingface_hub.list_repo_files(source) if file.startswith(at)]
        return huggingface_hub.hf_hub_download(source, at + _the_file([f for f in files if "/" not in f], name, source))

    def kept() -> str:
        folder = Path(huggingface_hub.snapshot_download(source, local_files_only=True), subfolder or "")
        return str(folder / _the_file([file.name for file in folder.iterdir()], name, source))

    return _safe(Path(_from_hub(source, fetch, kept)))


def _from_hub(source: str, fetch: Callable[[], str], kept: Callable[[], str]) -> str:
    """What the hub gives; what it gave earlier if it cannot be reached."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(f"there is no file or folder {source:.200}, and it is no hub id (owner/model): check the path")
    with quiet(), explained(f"{source} from the hub", "check the hub id and the connection; it is no file or folder here"):
        try:
            return fetch()
        except (ModelError, huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError):
            raise
        except Exception:
            try:
                return kept()
            except huggingface_hub.errors.LocalEntryNotFoundError:
                pass
            raise


def _wanted(files: Iterable[str], index: Mapping[str, Any], variant: str | None, weights: bool) -> list[str]:
    """The files of a model on the hub that are read: of each of its parts, those of one variant."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if not index or not folder or (folder in index and folder not in UNUSED):
            folders.setdefault(folder, []).append(name)
    wanted = []
    for folder, names in folders.items():
        chosen = {name for name in names if name.endswith(CONFIGS) and not name.endswith(".index.json")}
        variants = named(names)
        if weights and variants:
            try:
                chosen |= variants[choice(variants, variant)].needed
            except LookupError:  # the check of the folder tells the user what there is
                chosen |= {name for files_of in variants.values() for name in ([files_of.index] if files_of.index else [])}
        wanted += [f"{folder}/{name}" if folder else name for name in sorted(chosen)]
    return wanted


def _the_file(files: Iterable[str], name: str | None, where: str) -> str:
    """The file of that name, or the only one of safetensors."""
    files = sorted(files)
    if name is not None:
        if name not in files:
            raise ModelError(f"{where} has no file {name}: it has {', '.join(files[:12]) or 'none'}")
        return name
    safe = [file for file in files if file.endswith(".safetensors")]
    if len(safe) > 1:
        raise ModelError(f"{where} has several files of weights, {', '.join(safe[:12])}: set weight_name to the one you mean")
    if not safe:
        raise ModelError(f"{where} has no file *.safetensors: it has {', '.join(files[:12]) or 'no files'}; check the path")
    return safe[0]


def _safe(path: Path) -> Path:
    if path.suffix != ".safetensors":
        kind = "pickled, which can run code" if path.suffix in PICKLES else "of another kind"
        raise ModelError(f"the file {path} is {kind}: panokit reads *.safetensors; convert it")
    return path
