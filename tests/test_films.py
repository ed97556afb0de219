"""Films as files: every format, what it keeps, what is refused before a run, and what strangers' files can do."""

import builtins
import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from panokit import Panorama, boxes, films, recipe
from panokit.errors import FallbackWarning, OutputError, SettingError
from panokit.files import check_output
from panokit.films import check_film, film_sheet, read_frames, write, write_preview
from panokit.output import Output, check_file, check_preview
from panokit.panorama import is_whole
from panokit.recipe_text import as_python

Frames = NDArray[np.uint8]
RECIPE: dict[str, Any] = {"prompt": "a lake", "seed": 3, "width": 64, "height": 48, "frames": 9}
NAMES = ["a.mp4", "a.webm", "a.webp"]


def moving(count: int = 9, height: int = 48, width: int = 64) -> Frames:
    """A smooth picture that moves to the left, a pixel and a half a frame."""
    y, x, t = np.mgrid[:height, :width, :count].astype(float)
    waves = [np.sin((x + 1.5 * t) / scale + k) * np.cos(y / scale) for k, scale in enumerate((7, 11, 17))]
    return np.ascontiguousarray((127.5 + 120 * np.stack(waves, -1)).round().astype(np.uint8).transpose(2, 0, 1, 3))


def psnr(one: Frames, other: Frames) -> float:
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.fixture(scope="module", params=NAMES)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / request.param
    write(path, moving(), 12.5, RECIPE)
    return path


def test_frames_come_back(film: Path) -> None:
    kept = read_frames(film)
    assert kept.shape == moving().shape
    assert psnr(kept, moving()) > (40 if film.suffix != ".webp" else 1000)


def test_the_recipe_comes_back(film: Path) -> None:
    assert recipe.read(film) == RECIPE


def test_the_same_frames_make_the_same_bytes(film: Path, tmp_path: Path) -> None:
    """Also in a process that may use one core alone."""
    again = tmp_path / f"b{film.suffix}"
    write(again, moving(), 12.5, RECIPE)
    assert again.read_bytes() == film.read_bytes()
