"""What is kept of what networks say of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from panokit import Grid, Runtime
from panokit.errors import OutputError
from panokit.study.evidence import Evidence, Networks, Shown, make_folders, read_json
from panokit.study.plan import Study

GRID = Grid((8, 16), (8, 8), (4, 4), (False, False))


class Counts(nn.Module):
    """Gives as many numbers as it sees squares, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.asked = 0

    def forward(self, pictures: Tensor, prompt: str = "") -> Tensor:
        self.asked += 1
        found = self.weight * pictures.float().flatten(1).mean(1, keepdim=True)
        return found.mean() if prompt else found


def evidence(tmp_path: Path, cpu: Runtime, **changes: Any) -> tuple[Evidence, Counts, Counts]:
    here = f"{__name__}:Counts"
    data = {"prompts": ["a lake"], "methods": {"A": {}}, "features": {"f": here}, "scores": {"s": here}}
    study = Study.of({**data, "height": 16, "width": 32, **changes})
    networks = Networks(study, (16, 16))
    found = Evidence(study, tmp_path, (16, 16), networks, 2, cpu)
    features, score = networks.features["f"], networks.scores["s"]
    features.asked = score.asked = 0
    return found, features, score


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 100
    pixels[::2] += 2
    pixels[1::2, 16:] -= 2
    pixels[:, ::2] += 1
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "lake.png")
    return Shown(tmp_path / "a" / "lake.png", "a lake", GRID)


def test_each_picture_is_measured_once(tmp_path: Path, cpu: Runtime, shown: Shown) -> None:
    found, features, score = evidence(tmp_path, cpu)
    found.gather([shown], [shown.path])
    assert (features.asked, score.asked) == (2, 1)  # as a panorama and as a reference; as a panorama
    assert found.numbers(shown)["s"] == pytest.approx(51)
    assert found.squares("f", shown.path).flatten().tolist() == pytest.approx([1.5, 100.5])
    assert found.reference("f", shown.path).item() == pytest.approx(51)
    assert (features.asked, score.asked) == (2, 1)
    again, features, score = evidence(tmp_path, cpu)
    again.gather([shown], [shown.path])
    assert (features.asked, score.asked) == (0, 0)


def test_what_is_measured_otherwise_is_measured_again(tmp_path: Path, cpu: Runtime, shown: Shown) -> None:
    evidence(tmp_path, cpu)[0].gather([shown], [])
    found, features, score = evidence(tmp_path, cpu, crops=1)
    assert found.squares("f", shown.path).item() == pytest.approx(1.5)
    assert found.numbers(shown)["s"] == pytest.approx(1.5)
    assert (features.asked, score.asked) == (1, 1)
    wide = shown._replace(windows=Grid((8, 16), (8, 16), (4, 4), (False, False)))  # one window, and no borders
    assert found.numbers(wide)["seam"] == 1 < found.numbers(shown)["seam"]


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    assert read_json(tmp_path / "a.json") is read_json(tmp_path / "b.json") is None


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OutputError, match=r"the folder .*a/b cannot be made: Not a directory"):
        make_folders(tmp_path / "a" / "b")
