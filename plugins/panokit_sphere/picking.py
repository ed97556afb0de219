"""Which points of a sphere a view takes: one for each of its cells, each at most once, and as near as can be."""

import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree
from torch import Tensor

from panokit import SettingError
from panokit_sphere.views import Views

CHOICES = 16
"""How many points a cell may choose from at first. Where cells are closer than points, that is not enough, and more are."""


def picked(points: Float[Tensor, "points 3"], views: Views, window: tuple[int, int]) -> Int[Tensor, "n *window"]:
    """Choose points for the cells of all views.

    In each view the sum of the squared distances of cells and points is the least (an assignment). Then a point that no view
    chose takes the place of one that several views did.

    Args:
        points: directions.
        views: the views.
        window: height and width of a view, in cells.

    Returns:
        The number of a point for each cell. All points occur.

    Raises:
        SettingError: there are too few points for a view, or too many for all views together.
    """
    unreached = SettingError(
        f"{len(views)} views do not reach all {len(points)} points of the sphere: make spacing or density smaller"
    )
    if len(views) * window[0] * window[1] < len(points):
        raise unreached
    tree, rays = KDTree(points.numpy()), views.rays(*window).flatten(0, 1)
    chosen = torch.stack([_assigned(points, tree, rays @ frame, frame) for frame in views.frames])
    if not _spread(points, views, rays, chosen):
        raise unreached
    return chosen.unflatten(1, window)


def _assigned(points: Tensor, tree: KDTree, rays: Tensor, frame: Tensor) -> Tensor:
    """The points of one view."""
    cells, choices = len(rays), CHOICES
    while True:
        choices = min(choices, len(points))
        near = torch.from_numpy(tree.query((rays / rays.norm(dim=1, keepdim=True)).numpy(), choices)[1]).long()
        ahead = points[near] @ frame[2]
        apart = (points[near] / ahead[..., None].clamp(min=0.05) - rays[:, None]).square().sum(-1)
        numbers, columns = near.unique(return_inverse=True)
        rows = torch.arange(cells)[:, None].expand_as(near)
        costs = csr_array(
            (apart.flatten().numpy() + 1e-9, (rows.flatten().numpy(), columns.flatten().numpy())), (cells, len(numbers))
        )
        if len(numbers) >= cells:
            try:
                order, of = min_weight_full_bipartite_matching(costs)
            except ValueError:  # cells compete for the same points
                pass
            else:
                return numbers[torch.from_numpy(of).long()[torch.from_numpy(order).long().argsort()]]
        if choices == len(points):
            raise SettingError(f"a view of {cells} cells cannot choose from {len(points)} points: make the sphere denser")
        choices *= 2


def _spread(points: Tensor, views: Views, rays: Tensor, chosen: Tensor) -> bool:
    """Put each point that no view chose in the place of a near one that several views did. `chosen` is changed.

    Returns:
        Whether there is such a place for all of them.
    """
    count = torch.bincount(chosen.flatten(), minlength=len(points))
    for point in (count == 0).nonzero().flatten().tolist():
        best: tuple[float, int, int] | None = None
        for i, frame in enumerate(views.frames):
            shows, _, _ = views.inside(i, points[point])
            if shows:
                local = frame @ points[point]
                apart = (rays - local / local[2]).square().sum(1)
                apart[count[chosen[i]] < 2] = torch.inf
                cell = int(apart.argmin())
                if best is None or float(apart[cell]) < best[0]:
                    best = float(apart[cell]), i, cell
        if best is None or best[0] == float("inf"):
            return False
        _, i, cell = best
        count[chosen[i, cell]] -= 1
        count[point] += 1
        chosen[i, cell] = point
    return True
