"""Points on what an equirectangular picture shows, in their colours: what trainers of Gaussian splats start from."""

from pathlib import Path
from typing import NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit.files import written_aside
from panokit_sphere.cameras import WORLD
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import sample

COUNT = 100_000
"""How many points."""


@final
class Points(NamedTuple):
    """Points in the world of `transforms.json`.

    Attributes:
        places: to the right, ahead, and up.
        colours: in [0, 1].
    """

    places: Float[Tensor, "n 3"]
    colours: Float[Tensor, "n 3"]


def points(picture: Float[Tensor, "3 H W"], distances: Float[Tensor, "h w"], count: int = COUNT) -> Points:
    """Points in directions that are spread evenly.

    Args:
        picture: an equirectangular picture, in [0, 1].
        distances: how far everything on it is.
        count: how many points.
    """
    where = lattice(count)
    away = sample(distances[None], where[None])[0, 0]
    return Points(away[:, None] * where @ WORLD.T, sample(picture, where[None])[:, 0].T)


def write(path: Path, made: Points) -> None:
    """Write points as a binary PLY.

    Args:
        path: the file.
        made: the points.

    Raises:
        OutputError: the file cannot be written.
    """
    import trimesh

    shades = (made.colours * 255).round().byte().numpy()
    cloud = trimesh.PointCloud(made.places.float().numpy(), colors=shades)
    with written_aside(path) as aside:
        aside.write_bytes(cloud.export(file_type="ply"))
