"""Panoramas on a sphere: how well views share points, and whether a picture has seams.

    python benchmarks/sphere.py --out DIR

paints pictures with the embedded model, in a few minutes each, and prints a table. A seam is a ratio: the mean difference of
neighbouring pixels across a line, to that of all neighbours in the same rows. It is 1 where nothing is to be seen.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panokit import Region, Regions, Sampler
from panokit.panorama import Panorama, to_image
from panokit.projecting import picture_of
from panokit_sphere import Sphere, SphereLayout
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import pixel_directions, view

DUNES = Regions(
    (
        Region((0, 0, 1, 0.42), "clear sky at noon", guidance_scale=1.5),
        Region((0, 0.58, 1, 1), "sand dunes at noon"),
    ),
    elsewhere="desert dunes at noon, clear sky",
)
"""What is above, on and below the horizon. With more guidance the model would paint things into the sky."""


def seams(picture: Tensor, sphere: Sphere) -> tuple[str, float]:
    """The seams at the join of the picture, with the middle nine tenths of all other columns, and at the borders of views."""
    apart = (picture - picture.roll(-1, 2)).abs().mean(0)  # from each pixel to its right neighbour
    directions = pixel_directions((picture.shape[1], picture.shape[2]))
    border = torch.zeros_like(apart, dtype=torch.bool)
    for i in range(len(sphere)):
        inside = sphere.shown.inside(i, directions)[0]
        border |= inside != inside.roll(-1, 1)
    usual = apart.mean(1, keepdim=True).expand_as(apart)
    columns = apart.sum(0) / usual.sum(0)
    low, up = columns[:-1].quantile(torch.tensor([0.05, 0.95])).tolist()
    return f"{columns[-1]:.2f} ({low:.2f} to {up:.2f})", float(apart[border].sum() / usual[border].sum())


def poles(picture: Tensor) -> tuple[float, float]:
    """At the zenith and at the nadir: differences of neighbouring pixels within 10 degrees of it, to those from 10 to 40."""
    ratios = []
    for pitch in (90.0, -90.0):
        pole = view(picture.double(), 0.0, pitch, 80.0, (256, 256))
        apart = (pole.diff(dim=1)[:, :, 1:].abs() + pole.diff(dim=2)[:, 1:].abs()).mean(0)
        side = torch.arange(255) - 127.0
        angle = torch.rad2deg((side.square()[:, None] + side.square()).sqrt().div(128 / math.tan(math.radians(40))).atan())
        ratios.append(float(apart[angle < 10].mean() / apart[(angle >= 10) & (angle < 40)].mean()))
    return ratios[0], ratios[1]


def shared(sphere: Sphere) -> float:
    """The share of a view's points that a neighbour takes, too, of those that the neighbour shows."""
    points, numbers, shares = lattice(sphere.points), sphere.cells().flatten(1), []
    ahead = sphere.shown.frames[:, 2]
    for i, row in enumerate(numbers):
        near = (ahead @ ahead[i]).argsort(descending=True)[1:5].tolist()
        for j in near:
            shown = sphere.shown.inside(j, points[row])[0]
            shares.append(float(torch.isin(row[shown], numbers[j]).double().mean()))
    return sum(shares) / len(shares)


def agreement(sampler: Sampler, run: Any) -> float:
    """How much decoded views differ from the picture that they make, as a share of its standard deviation."""
    sphere, codec = run.windows, sampler.model.codec
    picture = picture_of(codec, run.canvas.float(), sphere, sampler.runtime)
    views = torch.cat([codec.decode(sphere.crop(run.canvas.float(), [i])) for i in range(len(sphere))])
    mean = sphere.views(picture, codec.factor)
    inner = slice(views.shape[2] // 8, -views.shape[2] // 8)
    return float((views - mean)[..., inner, inner].square().mean().sqrt() / picture.std())


@torch.no_grad()
def measure(name: str, high: int, steps: int, layout: SphereLayout, out: Path, **parts: Any) -> None:
    """Paint one picture, and print its row."""
    sampler = Sampler("landscapes", layout=layout, **parts)
    begun = time.perf_counter()
    run = sampler.begin(DUNES, height=high, width=2 * high, steps=steps, seed=4)
    while not run.done:
        run.step()
    picture = sampler.decode(run)
    took = time.perf_counter() - begun
    assert isinstance(run.windows, Sphere)
    join, borders = seams(picture, run.windows)
    print(
        f"| {name} | {len(run.windows)} | {run.windows.points} | {shared(run.windows):.2f} | {agreement(sampler, run):.2f} | "
        f"{join} | {borders:.2f} | {' and '.join(f'{pole:.2f}' for pole in poles(picture))} | {took:.0f} s |",
        flush=True,
    )
    Panorama(run.canvas, to_image(picture), run.recipe).save(out / f"{name.replace(' ', '-').replace(',', '')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="a part of the names of the rows to make")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    heads = ("", "views", "points", "shared", "views differ", "seam at the join (other columns)", "at borders of views")
    print("| " + " | ".join((*heads, "zenith and nadir", "time")) + " |")
    print("|---" * 9 + "|")
    rows: dict[str, tuple[int, SphereLayout, dict[str, Any]]] = {
        "msd, large": (512, SphereLayout(), {"guidances": ["msd"]}),
        "multidiffusion": (256, SphereLayout(), {}),
        "the fuser sphere": (256, SphereLayout(), {"fuser": "sphere"}),
        "density 3": (256, SphereLayout(density=3.0), {}),
        "multidiffusion, large": (512, SphereLayout(), {}),
    }
    for name, (high, layout, parts) in rows.items():
        if options.only in name:
            measure(name, high, options.steps, layout, options.out, **parts)


if __name__ == "__main__":
    main()
