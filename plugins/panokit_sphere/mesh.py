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
        left_out: how many more there would be, were there no jumps.
    """

    vertices: Float[Tensor, "n 3"]
    places: Float[Tensor, "n 2"]
    triangles: Int[Tensor, "m 3"]
    left_out: int


def mesh(distances: Float[Tensor, "H W"], rows: int = 256, jump: float = 1.5) -> Mesh:
    """Make a mesh of distances.

    Args:
        distances: on an equirectangular picture.
        rows: of the grid, from the zenith to the nadir; around the viewer it has twice as many columns.
        jump: a triangle is left out if its farthest corner is more than so many times as far as its nearest one. There a near
            thing ends, and what is behind it is not known.

    Raises:
        SettingError: there are too few rows or too many, the jump is not above 1, or no triangle is left.
    """
    if not 2 <= rows <= 4096:
        raise SettingError(f"rows is {rows}: it must be a number of rows of triangles, from 2 to 4096")
    if not jump > 1:
        raise SettingError(f"jump is {jump}: it must be how many times as far, above 1")
    columns = 2 * rows
    row, column = torch.meshgrid(*(torch.arange(n + 1, dtype=torch.float64) for n in (rows, columns)), indexing="ij")
    directions = at(row, column, (rows, columns))
    directions[:, -1] = directions[:, 0]  # the same place, though it lies on both borders of the picture
    directions[0], directions[-1] = torch.tensor([0.0, -1, 0]), torch.tensor([0.0, 1, 0])
    away = sample(distances[None], directions)[0]
    number = torch.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    # At a pole a whole row is one place, so a cell is one triangle. Seen from the middle, corners go against the clock.
    triangles = torch.cat([torch.stack([a, c, d], -1)[:-1].flatten(0, 1), torch.stack([a, d, b], -1)[1:].flatten(0, 1)])
    corners = away.flatten()[triangles]
    kept = triangles[corners.amax(1) <= jump * corners.amin(1)]
    if not len(kept):
        raise SettingError(f"no triangle is left: all have a jump above {jump:g}; take a larger one, or more rows")
    column = column.clone()
    column[[0, -1]] += 0.5  # the corner at a pole belongs to the middle of its triangle
    places = torch.stack([column / columns, row / rows], dim=-1)
    return Mesh((directions * away[..., None]).flatten(0, 1) * _GLTF, places.flatten(0, 1), kept, len(triangles) - len(kept))


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
