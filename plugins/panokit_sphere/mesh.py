"""A mesh of what an equirectangular picture shows, with the picture on it, as a file .glb (binary glTF 2.0).

The viewer is in the middle. A grid of vertices lies on the directions of the picture, each at its own distance. In glTF y is
up, and a camera that is not turned looks along -z: so it looks at the centre of the picture.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from panokit import SettingError
from panokit.files import written_aside
from panokit_sphere.projections import at, sample

if TYPE_CHECKING:
    from PIL.Image import Image

_GLTF = torch.tensor([1.0, -1, -1], dtype=torch.float64)
"""From right, down and ahead to right, up and back."""


@final
class Mesh(NamedTuple):
    """Triangles around the viewer, who sees their front.

    Attributes:
        vertices: in glTF's axes: to the right, up, and back.
        places: where each vertex lies on the picture: column and row, from 0 to 1, from its left and top.
        triangles: the vertices of each.
        cut: how many of them belong to what is behind something near, and not to both.
    """

    vertices: Float[Tensor, "n 3"]
    places: Float[Tensor, "n 2"]
    triangles: Int[Tensor, "m 3"]
    cut: int


def mesh(distances: Float[Tensor, "H W"], rows: int = 256, jump: float = 1.5) -> Mesh:
    """Make a mesh of distances.

    Where a near thing ends, no triangle joins it with what is behind it. The triangle goes on with what is behind, to the
    edge of the near thing as it is seen from the middle. So there is no gap for a viewer in the middle. What lies farther
    behind the near thing is not known, and is a hole for a viewer elsewhere.

    Args:
        distances: on an equirectangular picture.
        rows: of the grid, from the zenith to the nadir; around the viewer it has twice as many columns.
        jump: a near thing ends in a triangle whose farthest corner is more than so many times as far as another one.

    Raises:
        SettingError: there are too few rows or too many, or the jump is not above 1.
    """
    if not 2 <= rows <= 2048:
        raise SettingError(f"rows is {rows}: it must be a number of rows of triangles, from 2 to 2048")
    if not jump > 1:
        raise SettingError(f"jump is {jump}: it must be how many times as far, above 1")
    columns = 2 * rows
    row, column = torch.meshgrid(*(torch.arange(n + 1, dtype=torch.float64) for n in (rows, columns)), indexing="ij")
    directions = at(row, column, (rows, columns))
    directions[:, -1] = directions[:, 0]  # the same place, though it lies on both borders of the picture
    directions[0], directions[-1] = torch.tensor([0.0, -1, 0]), torch.tensor([0.0, 1, 0])
    away, directions = _away(distances, directions, jump).flatten(), directions.flatten(0, 1)
    column = column.clone()
    column[[0, -1]] += 0.5  # the corner at a pole belongs to the middle of its triangle
    places = torch.stack([column / columns, row / rows], dim=-1).flatten(0, 1)
    triangles = _triangles(rows, columns)
    corners = away[triangles]
    farthest = corners.amax(1, keepdim=True)
    near = corners * jump < farthest
    # Behind near corners there are vertices of their own, in the same directions.
    behind = triangles[near]
    triangles[near] = len(away) + torch.arange(len(behind))
    away = torch.cat([away, farthest.expand_as(corners)[near]])
    vertices = torch.cat([directions, directions[behind]]) * away[:, None] * _GLTF
    return Mesh(vertices, torch.cat([places, places[behind]]), triangles, int(near.any(1).sum()))


def _away(distances: Float[Tensor, "H W"], directions: Float[Tensor, "h w 3"], jump: float) -> Float[Tensor, "h w"]:
    """How far it is in some directions. The distances on both sides of a jump are not mixed: nothing is between them."""
    mixed, nearest = sample(distances[None], directions)[0], sample(distances[None], directions, "nearest")[0]
    far_apart = torch.maximum(mixed / nearest, nearest / mixed) > 1 + (jump - 1) / 4
    return torch.where(far_apart, nearest, mixed)


def _triangles(rows: int, columns: int) -> Int[Tensor, "m 3"]:
    """The triangles of a grid. Seen from the middle, their corners go against the clock.

    At a pole a whole row of vertices is one place, so a cell is one triangle there, and two elsewhere.
    """
    number = torch.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    return torch.cat([torch.stack([a, c, d], -1)[:-1].flatten(0, 1), torch.stack([a, d, b], -1)[1:].flatten(0, 1)])


def check_installed(what: str) -> None:
    """Check that meshes and points can be written.

    Args:
        what: what needs it, as `a mesh needs`.

    Raises:
        SettingError: trimesh is not installed.
    """
    if find_spec("trimesh") is None:
        raise SettingError(f'{what} trimesh, which is not installed: pip install "panokit[mesh]"')


def write(path: Path, made: Mesh, picture: "Image") -> None:
    """Write a mesh with a picture on it. It is shown in its own colours, without light (`KHR_materials_unlit`).

    Args:
        path: the file, .glb.
        made: the mesh.
        picture: the equirectangular picture.

    Raises:
        OutputError: the file cannot be written.
    """
    import trimesh

    # trimesh counts rows from the bottom, and turns them for glTF.
    uv = made.places * torch.tensor([1.0, -1]) + torch.tensor([0.0, 1])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    solid = trimesh.Trimesh(
        made.vertices.float().numpy(),
        made.triangles.numpy(),
        visual=trimesh.visual.TextureVisuals(uv=uv.numpy(), material=material),
        process=False,
    )
    with written_aside(path) as aside:
        aside.write_bytes(trimesh.exchange.gltf.export_glb(solid.scene(), tree_postprocessor=_without_light))


def _without_light(tree: dict[str, Any]) -> None:
    """Say in the head of a glTF that its materials shine by themselves."""
    for material in tree["materials"]:
        material["extensions"] = {"KHR_materials_unlit": {}}
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_unlit"]
