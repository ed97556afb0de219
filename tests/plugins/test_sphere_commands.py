"""The command line of equirectangular pictures, from the words to the files, and what it says of wrong ones."""

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from panokit import Panorama
from panokit.cli import main as panokit
from panokit.view.picture import sphere_of
from panokit_sphere.__main__ import main
from panokit_sphere.projections import pixel_directions

RECIPE: dict[str, Any] = {"prompt": "a lake", "seed": 6, "width": 128, "height": 64}
GPANO = '<rdf:Description GPano:ProjectionType="equirectangular" {}/>'
PART = " ".join(
    f'GPano:{name}="{value}"'
    for name, value in {
        "FullPanoWidthPixels": 256,
        "FullPanoHeightPixels": 128,
        "CroppedAreaImageWidthPixels": 128,
        "CroppedAreaImageHeightPixels": 64,
        "CroppedAreaTopPixels": 32,
    }.items()
)


def colours(height: int = 64) -> Image.Image:
    """A picture whose colours are its directions."""
    return Image.fromarray(((pixel_directions((height, 2 * height)).numpy() + 1) * 127.5).round().astype(np.uint8))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, where commands run."""
    monkeypatch.chdir(tmp_path)
    Panorama(torch.zeros(4, 8, 16), colours(), {**RECIPE, "projection": "equirectangular"}).save("a.png")
    return tmp_path


def middle(path: Path) -> list[float]:
    """The direction that the middle of a picture shows."""
    with Image.open(path) as image:
        shown = np.asarray(image)
    half = shown.shape[0] // 2
    return (shown[half - 1 : half + 1, half - 1 : half + 1].mean((0, 1)) / 127.5 - 1).tolist()


def test_faces(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faces", "a.png", "cube", "--cross"]) == 0
    assert capsys.readouterr().out == "cube: 6 faces of 32 x 32 pixels\n"
    expected = {
        "front": (0, 0, 1),
        "right": (1, 0, 0),
        "back": (0, 0, -1),
        "left": (-1, 0, 0),
        "up": (0, -1, 0),
        "down": (0, 1, 0),
    }
    for name, direction in expected.items():
        assert middle(place / "cube" / f"{name}.png") == pytest.approx(direction, abs=0.02)
    with Image.open(place / "cube" / "cross.png") as image:
        assert image.size == (128, 96)
    assert sorted(path.name for path in (place / "cube").iterdir()) == sorted(f"{name}.png" for name in [*expected, "cross"])
    assert main(["faces", "a.png", "cube", "--size=8"]) == 0  # again, into the same folder
    with Image.open(place / "cube" / "up.png") as image:
        assert image.size == (8, 8)


@pytest.mark.sweep
def test_what_panokit_paints_on_a_sphere_is_known_as_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a lake", "--layout=sphere", "--height=128", "--width=256", "--steps=1", "--out=lake.png", "--quiet"]
    assert panokit(["generate", *words]) == 0
    assert main(["faces", "lake.png", "cube"]) == 0
    assert panokit(["rerun", "lake.png", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    with Image.open("lake.png") as first, Image.open("lake-rerun.png") as again:
        assert sphere_of(first) == sphere_of(again) == {"haov": 360, "vaov": 180, "vOffset": 0}
        assert np.array_equal(np.asarray(first), np.asarray(again))


def test_views(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["views", "a.png", "scene", "--count", "14", "--fov", "100", "--size", "20"]) == 0
    assert capsys.readouterr().out == "scene/transforms.json: 14 views of 20 x 20 pixels\n"
    data = json.loads((place / "scene" / "transforms.json").read_text())
    assert (data["w"], data["fl_x"]) == (20, pytest.approx(10 / np.tan(np.radians(50))))
    assert sorted(path.name for path in (place / "scene" / "images").iterdir()) == [f"{k:04}.png" for k in range(14)]
    for frame in data["frames"]:
        matrix = np.array(frame["transform_matrix"])
        right, ahead, up = -matrix[:3, 2]  # a camera looks along its -z, in a world whose z is up
        assert middle(place / "scene" / frame["file_path"]) == pytest.approx([right, -up, ahead], abs=0.02)


def test_views_with_depths(place: Path) -> None:
    """A reader that puts each pixel at its depth, through the matrix of its view, is back on a ball, and so are the points."""
    trimesh = pytest.importorskip("trimesh", reason="points are written by trimesh, which is not installed")
    np.save("far.npy", np.full((16, 32), 3.0))
    assert main(["views", "a.png", "scene", "--size=20", "--depth=far.npy"]) == 0
    data = json.loads((place / "scene" / "transforms.json").read_text())
    for frame in data["frames"]:
        with Image.open(place / "scene" / frame["depth_file_path"]) as image:
            depth = np.asarray(image) / 1000
        row, column = np.mgrid[:20, :20] + 0.5
        rays = np.stack([(column - data["cx"]) / data["fl_x"], -(row - data["cy"]) / data["fl_y"], -np.ones((20, 20))])
        assert np.linalg.norm(rays * depth, axis=0) == pytest.approx(np.full((20, 20), 3.0), abs=2e-3)
    cloud = trimesh.load(place / "scene" / data["ply_file_path"])
    assert cloud.vertices.shape == (100_000, 3)
    right, ahead, up = cloud.vertices.T / 3
    assert np.hypot(np.hypot(right, ahead), up) == pytest.approx(1)
    assert cloud.colors[:, :3] / 127.5 - 1 == pytest.approx(np.stack([right, -up, ahead], -1), abs=0.05)


def test_far_depths_are_as_far_as_16_bits_reach(place: Path) -> None:
    pytest.importorskip("trimesh", reason="points are written by trimesh, which is not installed")
    np.save("far.npy", np.full((16, 32), 500.0))
    assert main(["views", "a.png", "scene", "--size=4", "--depth=far.npy"]) == 0
    with Image.open(place / "scene" / "depths" / "0000.png") as image:
        assert np.asarray(image).min() == 65535


def test_a_mesh_from_a_file_of_distances(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh = pytest.importorskip("trimesh", reason="meshes are written by trimesh, which is not installed")
    np.save("far.npy", np.full((8, 16), 3.0))
    assert main(["mesh", "a.png", "a.glb", "--depth", "far.npy", "--rows=8"]) == 0
    assert capsys.readouterr().out == "a.glb: 224 triangles, cut at 0 of them where the depth jumps\n"
    (read,) = trimesh.load(place / "a.glb").geometry.values()
    assert np.linalg.norm(read.vertices, axis=1) == pytest.approx(3)
    assert np.array_equal(np.asarray(read.visual.material.baseColorTexture), np.asarray(colours()))


def test_a_picture_too_large_for_graphics_processors_is_smaller_on_the_mesh(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trimesh = pytest.importorskip("trimesh", reason="meshes are written by trimesh, which is not installed")
    monkeypatch.setattr("panokit.view.picture.SPHERE", 64)
    np.save("far.npy", np.full((8, 16), 3.0))
    assert main(["mesh", "a.png", "a.glb", "--depth", "far.npy", "--rows=8"]) == 0
    assert "its picture has 64 x 32 pixels, the most that graphics processors take" in capsys.readouterr().out
    (read,) = trimesh.load(place / "a.glb").geometry.values()
    assert read.visual.material.baseColorTexture.size == (64, 32)


def test_the_commands_in_the_docs_run(place: Path) -> None:
    pytest.importorskip("trimesh", reason="meshes are written by trimesh, which is not installed")
    text = (Path(__file__).parents[2] / "docs" / "sphere-files.md").read_text()
    commands = [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m panokit_sphere ")]
    assert {words[0] for words in commands} == {"faces", "views", "mesh"}
    (place / "a.png").rename("room.png")
    np.save("depth.npy", np.full((8, 16), 3.0))
    Image.fromarray(np.full((8, 16), 3000, np.uint16)).save("depth.png")
    for words in commands:
        smaller = [{"1024": "16", "512": "16"}.get(word, word) for word in words]
        added = {"views": ["--size=16"], "mesh": ["--rows=8"]}.get(words[0], [])
        assert main([*smaller, *([] if "--size" in words or "--rows" in words else added)]) == 0


def test_the_help_names_all_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in ["views"])
    for command, option in {"faces": "--cross", "views": "--fov", "mesh": "--depth_is inverse|distance"}.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: python -m panokit_sphere {command} PICTURE ")
        assert option in text
    assert main([]) == 2


def test_python_runs_the_package_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["panokit_sphere", "--help"])
    monkeypatch.delitem(sys.modules, "panokit_sphere.__main__")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("panokit_sphere", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m panokit_sphere COMMAND ...")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cube"], "there is no command 'cube': there are faces, views, mesh"),
        (["faces"], "python -m panokit_sphere faces needs PICTURE: see python -m panokit_sphere faces --help"),
        (["mesh", "a.png", "a.glb"], "python -m panokit_sphere mesh needs --depth: see"),
        (["faces", "a.png", "b", "c"], "there is one word too many, 'c'"),
        (["faces", "a.png", "b", "--sise=3"], "there is no option --sise: did you mean --size?"),
        (["faces", "a.png", "b", "--config=3"], "there is no option --config: see --help"),
        (["faces", "a.png", "b", "--layout.fov=3"], "there is no option --layout.fov: see --help"),
        (["faces", "a.png", "b", "--size=big"], "size came as 'big': it must be a whole number"),
        (["faces", "a.png", "b", "--size=0"], "size is 0: it must be a number of pixels"),
        (["views", "a.png", "b", "--size=0"], "size is 0: it must be a number of pixels"),
        (
            ["faces", "a.png", "b", "--size=300000"],
            "size is 300000: it must be a number of pixels along a side, from 1 to 8192",
        ),
        (["views", "a.png", "b", "--far=3"], "far is about depth, and there is none: give --depth, or leave it out"),
        (["views", "a.png", "b", "--device=cpu"], "device is about depth, and there is none: give --depth"),
        (["mesh", "a.png", "a.glb", "--depth=a.npy", "--device=cpu"], "device is for a model of depth, and a.npy is a file"),
        (["mesh", "a.png", "a.glb", "--depth=a.jpg"], "depth a.jpg is no file of depths: give .npy, or a grey .png or .tif"),
        (["faces", "a.dzi", "b"], "a.dzi is a picture in tiles: write the panorama as .png or .tif, and give that file"),
        (["views", "a.png", "b", "--fov=60"], "20 views of 60 degrees leave holes, the first at latitude"),
        (["views", "a.png", "b", "--fov=180"], "fov is 180.0: it must be the angle of a view"),
        (["views", "a.png", "b", "--depth=a.npy"], "there is no file a.npy"),
        (["faces", "c.png", "b"], "there is no picture c.png"),
        (
            ["faces", "wide.png", "b"],
            "wide.png has 512 x 128 pixels: an equirectangular picture is twice as wide as it is high",
        ),
        (["faces", "flat.png", "b"], "flat.png is a flat panorama, as its recipe says: make an equirectangular one"),
        (["faces", "part.jpg", "b"], "part.jpg shows a part of the sphere, as its XMP says"),
        (["faces", "text.png", "b"], "text.png cannot be read as a picture"),
        (["faces", "a.png", "a.png"], "cannot write a.png: "),
        (["faces", "a.png", "no/b"], "cannot write no/b: No such file or directory"),
        (["mesh", "a.png", "a.obj", "--depth=a.npy"], "cannot write a.obj: the mesh is binary glTF, so name it NAME.glb"),
        (["mesh", "a.png", "no/a.glb", "--depth=a.npy"], "cannot write no/a.glb: there is no folder no"),
        (["mesh", "a.png", "a.glb", "--depth=a.npy"], "there is no file a.npy"),
        (["mesh", "a.png", "a.glb", "--depth=a.npy", "--far=1"], "far is 1: it must be a multiple of the median distance"),
        (["mesh", "a.png", "a.glb", "--depth=a.npy", "--depth_is=near"], "depth_is came as 'near': it must be"),
        (["mesh", "a.png", "a.glb", "--depth=no/such/folder"], "the depth model no/such/folder cannot be loaded"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (512, 128)).save("wide.png")
    Panorama(torch.zeros(4, 8, 16), colours(), RECIPE).save("flat.png")
    colours().save("part.jpg", xmp=GPANO.format(PART).encode())
    Path("text.png").write_text("no picture")
    before = sorted(place.iterdir())
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"panokit_sphere: {message}")
    assert error.count("\n") == 1
    assert sorted(place.iterdir()) == before  # nothing is made by a command that fails


def test_a_picture_of_another_program_needs_no_recipe(place: Path) -> None:
    colours().save("b.jpg", quality=95)
    assert main(["faces", "b.jpg", "cube"]) == 0
    assert middle(place / "cube" / "right.png") == pytest.approx([1, 0, 0], abs=0.03)
