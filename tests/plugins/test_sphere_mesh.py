"""Meshes: where their vertices are, which way their triangles face, what is left out, and what readers find in the file."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from panokit import SettingError
from panokit_sphere.mesh import Mesh, check_installed, mesh, write
from panokit_sphere.projections import pixel_directions


def ball(height: int = 32, radius: float = 1.0) -> Tensor:
    return torch.full((height, 2 * height), radius, dtype=torch.float64)


def normals(made: Mesh) -> Tensor:
    """The sides of triangles whose corners go against the clock, as glTF has them."""
    a, b, c = made.vertices[made.triangles].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def test_one_distance_makes_a_ball_seen_from_inside() -> None:
    made = mesh(ball(radius=2.5), rows=16)
    assert made.vertices.shape == (17 * 33, 3)
    assert made.triangles.shape == (2 * 16 * 32 - 2 * 32, 3)  # at each pole a cell is one triangle
    assert made.cut == 0
    assert torch.allclose(made.vertices.norm(dim=-1), torch.tensor(2.5, dtype=torch.float64))
    middles = made.vertices[made.triangles].mean(1)
    assert ((normals(made) * middles).sum(-1) < 0).all()  # every front faces the viewer, and none is empty
    volume = -(made.vertices[made.triangles[:, 0]] * normals(made)).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 2.5**3, rel=0.03)


def test_there_is_no_gap_at_the_join_and_the_poles() -> None:
    """Each edge has a triangle on both sides, once places that are the same count as one."""
    made = mesh(ball() * (1 + 0.1 * torch.rand(32, 64, generator=torch.Generator().manual_seed(6))), rows=12)
    _, same = torch.unique(made.vertices, dim=0, return_inverse=True)
    corners = same[made.triangles]
    edges = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    _, count = torch.unique(edges.sort(dim=1).values, dim=0, return_counts=True)
    assert (count == 2).all()
    assert len(torch.unique(corners)) == 11 * 24 + 2


def test_the_picture_lies_where_its_directions_are() -> None:
    """Ahead is -z, up is y, and the place of a vertex on the picture is its direction."""
    made = mesh(ball(), rows=8)
    inner = slice(17, -17)  # at the poles a place is the middle of a triangle
    right, up, back = made.vertices[inner].unbind(-1)
    column, row = made.places[inner].unbind(-1)
    assert torch.allclose(up, (np.pi * (0.5 - row)).sin())
    assert torch.allclose(right, (2 * np.pi * (column - 0.5)).sin() * (np.pi * (0.5 - row)).cos(), atol=1e-9)
    assert torch.allclose(back, -(2 * np.pi * (column - 0.5)).cos() * (np.pi * (0.5 - row)).cos(), atol=1e-9)
    assert made.places.amin() == 0
    assert column.amax() == 1
    assert made.vertices[:17, 1].eq(1).all()


def test_the_mesh_is_cut_where_something_near_ends() -> None:
    """No triangle joins it with what is behind it. From the middle there is no gap: each direction has its triangle."""
    near = ball(64, 3.0)
    near[24:40, 48:80] = 0.9
    made, whole = mesh(near, rows=32), mesh(near, rows=32, jump=4.0)
    corners = made.vertices[made.triangles].norm(dim=-1)
    assert (corners.amax(1) <= 1.5 * corners.amin(1) + 1e-9).all()
    assert {round(value, 6) for value in corners.flatten().tolist()} == {0.9, 3.0}  # nothing is between the two
    assert whole.cut == 0
    assert 0 < made.cut < 200
    shown = [torch.nn.functional.normalize(one.vertices[one.triangles], dim=-1) for one in (made, whole)]
    assert torch.allclose(*shown, atol=1e-9)
    assert torch.equal(made.places[made.triangles], whole.places[whole.triangles])


@pytest.mark.parametrize(
    ("rows", "jump", "message"),
    [
        (1, 1.5, "rows is 1: it must be a number of rows of triangles, from 2 to 2048"),
        (5000, 1.5, "rows is 5000"),
        (8, 1.0, "jump is 1.0: it must be how many times as far, above 1"),
        (8, float("nan"), "jump is nan"),
    ],
)
def test_what_makes_no_mesh_is_one_line(rows: int, jump: float, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        mesh(ball(), rows, jump)


def test_others_read_the_file(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="meshes are written by trimesh, which is not installed")
    colours = ((pixel_directions((32, 64)).numpy() + 1) * 127.5).round().astype(np.uint8)
    picture = Image.fromarray(colours)
    made = mesh(ball(), rows=16)
    write(tmp_path / "a.glb", made, picture)
    (read,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    assert read.vertices == pytest.approx(made.vertices.numpy(), abs=1e-6)
    assert np.array_equal(read.faces, made.triangles.numpy())
    assert np.array_equal(np.asarray(read.visual.material.baseColorTexture), colours)
    assert read.visual.uv == pytest.approx(np.stack([made.places[:, 0], 1 - made.places[:, 1]], -1), abs=1e-6)
    assert read.volume == pytest.approx(-4 / 3 * np.pi, rel=0.03)  # its fronts are inside

    data = (tmp_path / "a.glb").read_bytes()
    magic, edition, length, head, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, edition, length, kind) == (b"glTF", 2, len(data), b"JSON")
    tree = json.loads(data[20 : 20 + head])
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    (material,) = tree["materials"]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    start = 20 + head + 8 + view["byteOffset"]
    with Image.open(io.BytesIO(data[start : start + view["byteLength"]])) as image:
        assert np.array_equal(np.asarray(image), colours)
    # Written out by the rules of glTF: the first row of a texture is at v = 0.
    (primitive,) = tree["meshes"][0]["primitives"]
    place = tree["accessors"][primitive["attributes"]["TEXCOORD_0"]]
    start = 20 + head + 8 + tree["bufferViews"][place["bufferView"]]["byteOffset"] + place.get("byteOffset", 0)
    assert np.frombuffer(data, "<f4", 2 * place["count"], start).reshape(-1, 2) == pytest.approx(made.places.numpy(), abs=1e-6)


def test_without_trimesh_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panokit_sphere.mesh.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r'a mesh needs trimesh, which is not installed: pip install "panokit\[mesh\]"'):
        check_installed("a mesh needs")
