"""What networks say about each picture by itself. All ranks make it, and files keep it, so nothing is made twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from panokit.errors import OutputError, PanokitError, SettingError
from panokit.grid import Grid
from panokit.output import written_aside
from panokit.runtime import Runtime
from panokit.study.measures import Features, Pixels, batch, corners, crops, made, pixels, seam
from panokit.study.plan import Study, slug

Window = tuple[int, int]


class Shown(NamedTuple):
    """A panorama, and what it was to show."""

    path: Path
    prompt: str
    grid: Grid


@final
class Networks:
    """What a study measures with.

    Raises:
        PanokitError: a network cannot be made, or does not work on as many squares as there will be.
    """

    def __init__(self, study: Study, window: Window) -> None:
        self.features = {name: made(network) for name, network in study.features.items()}
        self.scores = {name: made(network) for name, network in study.scores.items()}
        self.wholes = [made(network) for network in study.wholes]
        count = len(corners((study.height, study.width), study.crop or study.height, study.crops))
        if not count:
            raise SettingError(
                f"panoramas of {study.width} x {study.height} pixels hold no square of {study.crop or study.height} to "
                "measure: make them wider, or crop smaller"
            )
        blank = np.zeros((count, *window, 3), np.uint8)
        for name, network in self.features.items():
            _tried(name, partial(_features, network, batch(blank)))
        for name, network in self.scores.items():
            _tried(name, partial(_score, network, batch(blank), study.prompts[0]))
        for network in self.wholes:
            picture = np.zeros((study.height, study.width, 3), np.uint8)
            _tried(type(network).__name__, partial(_numbers, network, picture, study.prompts[0]))

    def to(self, device: torch.device) -> None:
        """Move them there, as far as they are networks."""
        for network in (*self.features.values(), *self.scores.values(), *self.wholes):
            if isinstance(network, torch.nn.Module):
                network.eval().to(device)


@final
class Evidence:
    """What networks say of the pictures of a study, in files of its folder.

    Args:
        study: what is measured.
        out: its folder.
        window: the size of the model's own pictures, height and width.
        networks: what they are measured with, on the runtime's device.
        factor: pixels a cell of the canvas is wide.
        runtime: where.
    """

    def __init__(self, study: Study, out: Path, window: Window, networks: Networks, factor: int, runtime: Runtime) -> None:
        self._study, self._window, self._networks, self._factor, self._runtime = study, window, networks, factor, runtime
        self._scores = out / "scores"
        self._features = {
            name: Features(networks.features[name], out / "features" / _key(name, network), runtime.device)
            for name, network in study.features.items()
        }
        runtime.broadcast(lambda: make_folders(self._scores, *(features.folder for features in self._features.values())))

    def gather(self, panoramas: Sequence[Shown], references: Sequence[Path]) -> None:
        """Make what is missing of it, shared by the ranks."""
        work: list[Callable[[], Any]] = [partial(self._of_panorama, shown) for shown in panoramas]
        work += [partial(self._of_reference, path) for path in dict.fromkeys(references)]
        quiet = None if self._runtime.writes else True  # None: where there is a terminal
        with tqdm(total=len(work), desc="measuring", leave=False, disable=quiet) as bar:

            def one(k: int) -> None:
                work[k]()
                bar.update(self._runtime.world_size)

            self._runtime.replicas(one, len(work))

    def numbers(self, shown: Shown) -> dict[str, float]:
        """Scores, numbers of the whole, and the seam, of one panorama."""
        key = _key("", [[*self._study.scores.items()], self._study.wholes, self._squared, repr(shown.grid)])
        path = self._scores / f"{shown.path.parent.name}-{shown.path.stem}.json"
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("key") == key:
            return dict(kept["numbers"])
        picture = pixels(shown.path)
        squares = batch(self._crops(picture)).to(self._runtime.device)
        numbers = {name: _score(score, squares, shown.prompt) for name, score in self._networks.scores.items()}
        for whole in self._networks.wholes:
            numbers |= _numbers(whole, picture, shown.prompt)
        numbers["seam"] = seam(picture, shown.grid, self._factor)
        write(path, json.dumps({"key": key, "numbers": numbers}))
        return numbers

    def squares(self, name: str, path: Path) -> Tensor:
        """Features of a panorama's squares, by one network."""
        key = f"{path.parent.name}-{path.stem}-{_key('', self._squared)}"
        return self._features[name].of(key, lambda: self._crops(pixels(path)))

    def reference(self, name: str, path: Path) -> Tensor:
        """Features of a reference, by one network; its key is its content, because anybody may change a folder."""
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return self._features[name].of(f"reference-{key}", lambda: pixels(path)[None])

    @property
    def _squared(self) -> list[Any]:
        return [self._study.crop, self._study.crops]

    def _crops(self, picture: Pixels) -> Pixels:
        return crops(picture, self._window, self._study.crop, self._study.crops)

    def _of_panorama(self, shown: Shown) -> None:
        self.numbers(shown)
        for name in self._features:
            self.squares(name, shown.path)

    def _of_reference(self, path: Path) -> None:
        for name in self._features:
            self.reference(name, path)


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The data in a JSON file; None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make_folders(*paths: Path) -> None:
    """Make folders where there are none.

    Raises:
        OutputError: one cannot be made.
    """
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"the folder {path} cannot be made: {cause.strerror}") from cause


def _key(name: str, what: Any) -> str:
    """A name for a measurement, from all that decides it."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(name)}-{digest}" if name else digest


def _tried(name: str, use: Callable[[], Any]) -> None:
    try:
        use()
    except PanokitError:
        raise
    except Exception as cause:  # whatever somebody's class does
        why = " ".join(str(cause).split())[:200]
        raise SettingError(f"{name} does not work on pictures of this study ({type(cause).__name__}: {why})") from cause


@torch.no_grad()
def _features(network: Any, pictures: Tensor) -> None:
    features = network(pictures)
    if features.ndim != 2 or len(features) != len(pictures):
        raise SettingError(f"it gave {tuple(features.shape)} for {len(pictures)} pictures: features are n d")


@torch.no_grad()
def _score(score: Any, squares: Tensor, prompt: str) -> float:
    return float(torch.as_tensor(score(squares, prompt)).float().mean())


def _numbers(whole: Any, picture: Pixels, prompt: str) -> dict[str, float]:
    numbers: Mapping[str, float] = whole(picture, prompt)
    return {name: float(number) for name, number in numbers.items()}
