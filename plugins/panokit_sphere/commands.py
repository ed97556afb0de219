"""The commands: one function each, whose arguments are the options."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from panokit.errors import OutputError, SettingError
from panokit.files import explained, try_files, write_picture, written_aside
from panokit.wording import counted

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


FAR = 10.0
"""The largest distance, as a multiple of the median one, if nobody says it."""
ENDINGS = (".jpg", ".jpeg", ".webp", ".bmp", ".exr", ".npz")
"""The endings of files that are no depths here, and no names of models either."""


def faces(picture: str, folder: str, *, size: int | None = None, cross: bool = False) -> None:
    """Write the six faces of a cube: front.png, right.png, back.png, left.png, up.png and down.png.

    Args:
        picture: An equirectangular picture.
        folder: The folder of the faces, which is made if it is missing.
        size: Pixels along a side of a face. The default is a quarter of the picture's width.
        cross: Also write cross.png, which shows all faces side by side.
    """
    from panokit.panorama import to_image
    from panokit_sphere.faces import cross as crossed
    from panokit_sphere.faces import faces as faces_of

    image = _picture(picture)
    if size is not None:
        _check_side(size)
    place = _folder(folder)
    sides = faces_of(_pixels(image), size)
    whole = {"cross": crossed(sides)} if cross else {}
    for name, side in {**sides, **whole}.items():
        write_picture(place / f"{name}.png", to_image(side))
    print(f"{place}: 6 faces of {sides['front'].shape[-1]} x {sides['front'].shape[-1]} pixels")


def views(
    picture: str,
    folder: str,
    *,
    count: int = 20,
    fov: float = 90.0,
    size: int = 512,
    depth: str | None = None,
    depth_is: Literal["inverse", "distance"] | None = None,
    far: float = FAR,
    device: str | None = None,
) -> None:
    """Write perspective views in all directions, and transforms.json with their cameras, as NeRF tools read it.

    Args:
        picture: An equirectangular picture.
        folder: The folder of transforms.json, which is made if it is missing. The views are in images/.
        count: How many views, spread evenly over the sphere. Together they must see all of it.
        fov: The angle across a view, in degrees.
        size: Pixels along a side of a view.
        depth: How far everything is, to write the depth of each view in depths/, and points.ply: a file or a model, as mesh
            takes it.
        depth_is: What its numbers are. The default is distance for a file, and what a model says itself, otherwise inverse.
        far: The largest distance, as a multiple of the median one.
        device: Where the model runs, as torch names it. The default is transformers' choice.
    """
    from panokit.panorama import to_image
    from panokit_sphere import points
    from panokit_sphere.cameras import cameras, transforms
    from panokit_sphere.depth import along
    from panokit_sphere.mesh import check_installed
    from panokit_sphere.projections import view

    _check_side(size)
    if depth is not None:
        check_installed("the points of a picture need")
    elif depth_is is not None or device is not None or far != FAR:
        given = "depth_is" if depth_is is not None else "device" if device is not None else "far"
        raise SettingError(f"{given} is about depth, and there is none: give --depth, or leave it out")
    spread = cameras(count, fov)
    image = _picture(picture)
    pixels = _pixels(image)
    distances = None if depth is None else _distances(image, depth, depth_is, far, device)
    place = _folder(folder)
    images = [f"images/{number:04}.png" for number in range(count)]
    depths = [f"depths/{number:04}.png" for number in range(count)] if distances is not None else []
    for part in ["images", "depths"][: 1 + bool(depths)]:
        _folder(str(place / part))
    for name, camera in zip(images, spread, strict=True):
        write_picture(place / name, to_image(view(pixels, camera.yaw, camera.pitch, fov, (size, size))))
    if distances is not None:
        for name, camera in zip(depths, spread, strict=True):
            write_picture(place / name, _in_thousandths(along(distances, camera, size)))
        points.write(place / "points.ply", points.points(pixels, distances))
    contents = transforms(list(zip(images, spread, strict=True)), size, depths, "points.ply" if depths else None)
    with written_aside(place / "transforms.json") as aside:
        aside.write_text(json.dumps(contents, indent=2), encoding="utf-8")
    print(f"{place / 'transforms.json'}: {counted(count, 'view')} of {size} x {size} pixels")


def _in_thousandths(depth: "Tensor") -> "Image":
    """Depths as grey with 16 bits, in thousandths of a unit. What is farther than 65 units is there."""
    from PIL import Image

    return Image.fromarray((depth * 1000).round().clamp(1, 65535).numpy().astype("uint16"))


def mesh(
    picture: str,
    file: str,
    *,
    depth: str,
    depth_is: Literal["inverse", "distance"] | None = None,
    rows: int = 256,
    jump: float = 1.5,
    far: float = FAR,
    device: str | None = None,
) -> None:
    """Write a mesh of the scene with the picture on it, as binary glTF.

    Args:
        picture: An equirectangular picture.
        file: The file of the mesh, NAME.glb.
        depth: How far everything is: an equirectangular file, .npy or a grey .png or .tif; or a model that estimates depth, a
            folder or a name on the hub, for transformers' pipeline for depth-estimation.
        depth_is: What its numbers are. The default is distance for a file, and what a model says itself, otherwise inverse.
        rows: Rows of the grid of triangles, from the zenith to the nadir.
        jump: Something near ends where what is behind it is more than so many times as far. There the mesh is cut.
        far: The largest distance, as a multiple of the median one.
        device: Where the model runs, as torch names it. The default is transformers' choice.
    """
    from panokit.files import AREA
    from panokit.view.picture import SPHERE, within
    from panokit_sphere.mesh import check_installed, write
    from panokit_sphere.mesh import mesh as mesh_of

    check_installed("a mesh needs")
    place = _check_glb(file)
    image = _picture(picture)
    distances = _distances(image, depth, depth_is, far, device)
    made = mesh_of(distances, rows, jump)
    shown = within(image, SPHERE, AREA)
    write(place, made, shown)
    print(f"{place}: {counted(len(made.triangles), 'triangle')}, cut at {made.cut} of them where the depth jumps")
    if shown.size != image.size:
        wide, high = shown.size
        print(f"its picture has {wide} x {high} pixels, the most that graphics processors take")


def _check_side(size: int) -> None:
    from panokit.view.picture import SPHERE

    if not 1 <= size <= SPHERE:
        raise SettingError(f"size is {size}: it must be a number of pixels along a side, from 1 to {SPHERE}")


def _picture(path: str) -> "Image":
    from panokit_sphere.pictures import read

    return read(Path(os.path.expanduser(path)))


def _pixels(image: "Image") -> "Tensor":
    from panokit.pixels import read

    return read(image, "picture")[0]


def _folder(path: str) -> Path:
    """A folder, which is made if it is missing."""
    place = Path(os.path.expanduser(path))
    with explained(place):
        place.mkdir(exist_ok=True)
    try_files({str(place): place / ".panokit.png"})
    return place


def _check_glb(path: str) -> Path:
    place = Path(os.path.expanduser(path))
    if place.suffix.lower() != ".glb":
        raise OutputError(f"cannot write {place}: the mesh is binary glTF, so name it NAME.glb")
    try_files({str(place): place})
    return place


def _distances(image: "Image", depth: str, kind: str | None, far: float, device: str | None) -> "Tensor":
    from panokit_sphere import depth as depths
    from panokit_sphere.cameras import cameras

    if not far > 1:
        raise SettingError(f"far is {far:g}: it must be a multiple of the median distance, above 1")
    path = Path(os.path.expanduser(depth))
    if path.suffix.lower() in depths.ENDINGS:
        if device is not None:
            raise SettingError(f"device is for a model of depth, and {depth} is a file: leave device out")
        return depths.read(path, kind == "inverse", far)
    if path.is_file() or path.suffix.lower() in ENDINGS:
        raise SettingError(f"depth {depth} is no file of depths: give .npy, or a grey .png or .tif; or a model")
    model = depths.load(depth, device)
    inverse = None if kind is None else kind == "inverse"
    return depths.estimate(_pixels(image), model, cameras(depths.VIEWS, depths.FOV), inverse=inverse, far=far)
