"""Depths of views are put together to the distances of a scene that is known exactly: a room, with the viewer in it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from panokit import SettingError
from panokit_sphere import depth
from panokit_sphere.cameras import Camera, cameras
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import directions, pixel_directions

SIZE = 64
VIEWS = cameras(20, 90.0)


def room(where: Tensor) -> Tensor:
    """How far the walls of a box around the viewer are."""
    return (torch.tensor([3.0, 1.5, 4.0]) / where.abs().clamp(min=1e-9)).amin(-1)


def along_axis(camera: Camera) -> Tensor:
    """The depth of each pixel of a view: its distance along the axis, written out from the angle."""
    where = directions(camera.yaw, camera.pitch, camera.fov, (SIZE, SIZE))
    axis = directions(camera.yaw, camera.pitch, 1.0, (1, 1))[0, 0]
    return room(where) * (where * axis).sum(-1)


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return room(pixel_directions((SIZE, 2 * SIZE)))


def off(made: Tensor, expected: Tensor) -> Tensor:
    """How far distances are off, relative, when both have the same median."""
    return ((made / made.median()) / (expected / expected.median()) - 1).abs()


def test_each_direction_is_in_two_of_the_views_that_a_model_gets() -> None:
    where = lattice(20_000)
    count = torch.stack([camera.places(where)[1] for camera in cameras(depth.VIEWS, depth.FOV)]).sum(0)
    assert count.min() == 2


def test_scales_and_shifts_of_views_are_recovered(expected: Tensor) -> None:
    g = torch.Generator().manual_seed(6)
    scales, shifts = torch.rand(20, generator=g) * 2 + 0.5, torch.rand(20, generator=g) * 0.6 - 0.3
    maps = [(1 / along_axis(camera) - shifts[k]) / scales[k] for k, camera in enumerate(VIEWS)]
    got = torch.tensor(depth.align(maps, VIEWS))
    assert torch.allclose(got[:, 0], scales / scales.mean(), rtol=0.01)
    assert torch.allclose(got[:, 1], shifts / scales.mean(), atol=0.01)
    wrong = off(1 / depth.merged(maps, VIEWS, SIZE), expected)
    assert wrong.median() < 1e-3
    assert wrong.max() < 0.05  # in the corners of the room, between pixels


@pytest.mark.parametrize(("error", "median", "largest"), [(0.0, 0.0003, 0.02), (0.02, 0.03, 0.09), (0.1, 0.07, 0.42)])
def test_the_errors_of_a_model_stay_and_do_not_grow(
    error: float, median: float, largest: float, expected: Tensor, sweeps: bool
) -> None:
    """Each view has a scale, a shift and smooth errors of its own. The bounds are in docs/sphere-files.md."""
    for seed in range(6, 12 if sweeps else 7):
        g = torch.Generator().manual_seed(seed)
        maps = []
        for camera in VIEWS:
            scale, shift = torch.randn((), generator=g).div(2).exp(), torch.randn((), generator=g) / 5
            waves = F.interpolate(torch.randn(1, 1, 4, 4, generator=g), (SIZE, SIZE), mode="bicubic")[0, 0]
            maps.append(((1 + error * waves) / along_axis(camera) - shift) / scale)
        wrong = off(1 / depth.merged(maps, VIEWS, SIZE), expected)
        assert wrong.median() < median
        assert wrong.max() < largest + 0.005


class Toy:
    """A model for a picture whose colours are its directions: so it knows where a view looks."""

    def __init__(self, answer: Callable[[Tensor], Tensor], **config: Any) -> None:
        self.answer, self.model = answer, SimpleNamespace(config=SimpleNamespace(**{"model_type": "dpt", **config}))

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        where = F.normalize(torch.from_numpy(np.asarray(image).copy()).double() / 127.5 - 1, dim=-1)
        axis = F.normalize(where[[0, 0, -1, -1], [0, -1, 0, -1]].sum(0), dim=0)
        return {"predicted_depth": self.answer(room(where) * (where @ axis))[None].float()}


@pytest.fixture
def coloured(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(depth, "SIDE", SIZE)
    return (pixel_directions((128, 256)).movedim(-1, 0) + 1) / 2


@pytest.mark.parametrize(
    ("answer", "config", "inverse"),
    [
        (lambda z: 7 / z + 3, {}, None),
        (lambda z: z, {"model_type": "zoedepth"}, None),
        (lambda z: z, {"depth_estimation_type": "metric"}, None),
        (lambda z: z, {}, False),
        (lambda z: 2 / z, {"model_type": "glpn"}, True),
    ],
)
def test_a_model_is_asked_view_by_view_and_says_what_its_numbers_are(
    answer: Callable[[Tensor], Tensor], config: dict[str, Any], inverse: bool | None, coloured: Tensor, expected: Tensor
) -> None:
    made = depth.estimate(coloured, Toy(answer, **config), VIEWS, inverse=inverse)
    assert made.shape == (SIZE, 2 * SIZE)
    assert off(made, expected).median() < 0.02  # colours have 8 bits
    if config.get("depth_estimation_type"):
        assert made.median() == pytest.approx(expected.median().item(), rel=0.02)  # its own unit is kept


def test_nothing_is_farther_than_is_asked(coloured: Tensor, expected: Tensor) -> None:
    assert expected.max() > 2 * expected.median()
    made = depth.estimate(coloured, Toy(lambda z: 1 / z), VIEWS, far=1.3)
    assert made.max() == pytest.approx(1.3 * made.median().item(), rel=0.1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda z: z * torch.nan, "gave numbers in the shape .* that are no depths"),
        (lambda z: z[0], "gave numbers in the shape"),
        (lambda z: 0 * z, "at least half of the depths are no distances"),
    ],
)
def test_what_is_no_depth_is_one_line(answer: Callable[[Tensor], Tensor], message: str, coloured: Tensor) -> None:
    with pytest.raises(SettingError, match=message):
        depth.estimate(coloured, Toy(answer), VIEWS)


def test_a_model_of_transformers_is_loaded_from_a_folder_and_estimates(tmp_path: Path, coloured: Tensor) -> None:
    loaded = depth.load(str(tiny(tmp_path)), "cpu")
    assert depth.gives_inverse(loaded)
    distances = depth.estimate(coloured, loaded, VIEWS)
    assert distances.shape == (SIZE, 2 * SIZE)
    assert (distances > 0).all()
    assert distances.isfinite().all()
    assert distances.median() == pytest.approx(1)


def tiny(folder: Path) -> Path:
    """A folder with a model of random weights."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )
    torch.manual_seed(6)
    made = DPTForDepthEstimation(config)
    made.head.head[-2].bias.data.fill_(1.0)  # its last layer leaves out what is below 0
    made.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"the depth model .* cannot be loaded \(.*\): give a folder, or a model of the hub"):
        depth.load(str(tmp_path))


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a.tif"])
def test_distances_are_read_from_a_file(name: str, tmp_path: Path, expected: Tensor) -> None:
    shades = (expected * 8000).numpy().astype(np.uint16)
    if name == "a.npy":
        np.save(tmp_path / name, expected.numpy())
    else:
        Image.fromarray(shades).save(tmp_path / name)
    assert off(depth.read(tmp_path / name), expected).max() < 1e-3
    if name == "a.npy":
        np.save(tmp_path / name, 1 / expected.numpy())
        assert torch.allclose(depth.read(tmp_path / name, inverse=True), expected)
        assert depth.read(tmp_path / name, inverse=True, far=1.5).max() == pytest.approx(
            1.5 * expected.median().item(), rel=0.1
        )


def _saved(path: Path, content: Any) -> Path:
    if isinstance(content, Image.Image):
        content.save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", None, "there is no file .*a.npy"),
        ("a.png", None, "there is no picture .*a.png"),
        ("a.npy", b"no array", "cannot be read as an array of numpy"),
        ("a.npy", np.array([{}]), "cannot be read as an array of numpy: Object arrays cannot be loaded"),
        ("a.npy", np.ones((4, 8, 3)), r"holds float64 numbers in the shape \(4, 8, 3\): give distances, height x width"),
        ("a.npy", np.ones((4, 8), complex), "holds complex128 numbers"),
        ("a.npy", np.ones((4, 9)), "has 9 x 4 pixels: an equirectangular picture is twice as wide"),
        ("a.npy", np.eye(4, 8), "holds 28 numbers that are no distances: each must be finite, and above 0"),
        ("a.npy", np.full((4, 8), np.inf), "holds 32 numbers that are no distances"),
        ("a.png", Image.new("RGB", (8, 4)), r"has colours \(mode RGB\): distances are shades of grey"),
    ],
)
def test_what_holds_no_distances_is_one_line(name: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        depth.read(_saved(tmp_path / name, content))
