"""Measurements of single pictures by networks. All ranks share the work, and files keep the results."""

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

from panokit.errors import OutputError, PanokitError, SettingError, reason_of
from panokit.files import written_aside
from panokit.runtime import Runtime
from panokit.study.measures import Features, Pixels, batch, corners, crops, made, pixels, seam
from panokit.study.plan import Study, slug
from panokit.windows import Windows

Window = tuple[int, int]


class Shown(NamedTuple):
    """A panorama, and what it should show.

    Attributes:
        path: the file of the panorama.
        prompt: its prompt.
        windows: where its windows lie on the canvas.
    """

    path: Path
    prompt: str
    windows: Windows


@final
class Networks:
    """The networks of a study. Each is tried once on blank pictures, so it fails before hours of work.

    Args:
        study: names the networks.
        window: the size of the model's own pictures, height and width in pixels.

    Attributes:
        features: networks that return features of squares, by name.
        scores: networks that rate squares, by name.
        wholes: measures of whole panoramas.

    Raises:
        PanokitError: a network cannot be made or does not work, or a panorama holds no square.
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
            _try(name, partial(_features, network, batch(blank)))
        for name, network in self.scores.items():
            _try(name, partial(_score, network, batch(blank), study.prompts[0]))
        for network in self.wholes:
            picture = np.zeros((study.height, study.width, 3), np.uint8)
            _try(type(network).__name__, partial(_numbers, network, picture, study.prompts[0]))

    @property
    def better(self) -> dict[str, str]:
        """Which values of a measure are better: `low`, `high`, or those near `one`. Measures that do not say are left out."""
        better = {f"{distance}, {name}": "low" for distance in ("KID", "FID") for name in self.features}
        better |= {name: score.better for name, score in self.scores.items() if hasattr(score, "better")}
        for whole in self.wholes:
            better |= getattr(whole, "better", {})
        return better | {"seam": "one"}

    def to(self, device: torch.device) -> None:
        """Move all modules to a device. A measure that is no module stays as it is."""
        for network in (*self.features.values(), *self.scores.values(), *self.wholes):
            if isinstance(network, torch.nn.Module):
                network.eval().to(device)


@final
class Evidence:
    """The measurements of a study's pictures. Files in the study's folder keep them, so nothing is measured twice.

    Args:
        study: the study.
        out: the folder of the study.
        window: the size of the model's own pictures, height and width in pixels.
        networks: the networks of the study, on the runtime's device.
        factor: pixels along a side of one cell of the canvas.
        runtime: shares the work among its ranks.

    Raises:
        OutputError: a folder for the files cannot be made.
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
        """Make the missing measurements. The ranks share the work.

        Args:
            panoramas: the panoramas of all methods.
            references: the reference pictures of all prompts.

        Raises:
            OutputError: a picture cannot be read, or a file cannot be written.
        """
        work: list[Callable[[], Any]] = [partial(self._measure_panorama, shown) for shown in panoramas]
        work += [partial(self._measure_reference, path) for path in dict.fromkeys(references)]
        quiet = None if self._runtime.writes else True  # None shows the bar on terminals only
        with tqdm(total=len(work), desc="measuring", leave=False, disable=quiet) as bar:

            def one(k: int) -> None:
                work[k]()
                bar.update(self._runtime.world_size)

            self._runtime.replicas(one, len(work))

    def numbers(self, shown: Shown) -> dict[str, float]:
        """The scores of one panorama's squares, the measures of the whole panorama, and its seam, by name."""
        key = _key("", [[*self._study.scores.items()], self._study.wholes, self._square_settings, repr(shown.windows)])
        path = self._scores / f"{shown.path.parent.name}-{shown.path.stem}.json"
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("key") == key:
            return dict(kept["numbers"])
        picture = pixels(shown.path)
        squares = batch(self._crops(picture)).to(self._runtime.device)
        numbers = {name: _score(score, squares, shown.prompt) for name, score in self._networks.scores.items()}
        for whole in self._networks.wholes:
            numbers |= _numbers(whole, picture, shown.prompt)
        numbers["seam"] = seam(picture, shown.windows, self._factor)
        write(path, json.dumps({"key": key, "numbers": numbers}))
        return numbers

    def squares(self, name: str, path: Path) -> Tensor:
        """The features of a panorama's squares.

        Args:
            name: the name of the network in the study.
            path: the file of the panorama.

        Returns:
            One row for each square, `n d`.
        """
        key = f"{path.parent.name}-{path.stem}-{_key('', self._square_settings)}"
        return self._features[name].of(key, lambda: self._crops(pixels(path)))

    def reference(self, name: str, path: Path) -> Tensor:
        """The features of a reference picture. The content of the file is their key, because a user may replace the file.

        Args:
            name: the name of the network in the study.
            path: the file of the picture.

        Returns:
            One row, `1 d`.
        """
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return self._features[name].of(f"reference-{key}", lambda: pixels(path)[None])

    @property
    def _square_settings(self) -> list[Any]:
        return [self._study.crop, self._study.crops]

    def _crops(self, picture: Pixels) -> Pixels:
        return crops(picture, self._window, self._study.crop, self._study.crops)

    def _measure_panorama(self, shown: Shown) -> None:
        self.numbers(shown)
        for name in self._features:
            self.squares(name, shown.path)

    def _measure_reference(self, path: Path) -> None:
        for name in self._features:
            self.reference(name, path)


def write(path: Path, text: str) -> None:
    """Write a text file whole, or not at all.

    Raises:
        OutputError: the file cannot be written.
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
    """Make the folders that do not exist yet.

    Raises:
        OutputError: a folder cannot be made.
    """
    for path in paths:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"the folder {path} cannot be made: {cause.strerror}") from cause


def _key(name: str, what: Any) -> str:
    """A name for a measurement, with a hash of everything that decides its result."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(name)}-{digest}" if name else digest


def _try(name: str, use: Callable[[], Any]) -> None:
    """Use a network once, and turn whatever it raises into a SettingError with its name."""
    try:
        use()
    except PanokitError:
        raise
    except Exception as cause:  # a user's class may raise anything
        why = reason_of(cause)
        raise SettingError(
            f"{name} does not work on pictures of this study ({type(cause).__name__}: {why}): correct it, or leave it out"
        ) from cause


@torch.no_grad()
def _features(network: Any, pictures: Tensor) -> None:
    features = network(pictures)
    if features.ndim != 2 or len(features) != len(pictures):
        raise SettingError(
            f"{type(network).__name__} returned the shape {tuple(features.shape)} for {len(pictures)} pictures: return one row "
            "of features for each"
        )


@torch.no_grad()
def _score(score: Any, squares: Tensor, prompt: str) -> float:
    return float(torch.as_tensor(score(squares, prompt)).float().mean())


def _numbers(whole: Any, picture: Pixels, prompt: str) -> dict[str, float]:
    numbers: Mapping[str, float] = whole(picture, prompt)
    return {name: float(number) for name, number in numbers.items()}
