"""What methods cost, where it is known."""

from pathlib import Path

from panokit.jobs import Worker
from panokit.study.cost import costs


def test_passes_are_counted_and_seconds_taken(folder: Path) -> None:
    """A canvas of 16 x 32 cells has 3 x 7 windows of 8 x 8, and a coarse one, of 8 x 16, 1 x 3."""
    job = {"model": str(folder), "prompt": "a lake", "height": 32, "width": 64, "steps": 2}
    guided = {"levels": 2, "until": 0.5}  # the first of two steps
    plain, begun, msd, paper, disjoint = costs(
        [
            job,
            {**job, "guidances": ["msd"]},
            {**job, "guidances": [{"plugin": "msd", "head_start": 0.0, **guided}]},
            {**job, "guidances": [{"plugin": "msd_paper", **guided}]},
            {**job, "layout": {"plugin": "spotdiffusion", "unit": 8}, "wrap": "xy"},
        ],
        Worker({"accelerator": "cpu"}),
        rounds=2,
    )
    assert plain[:2] == (2 * 21, 0)
    assert begun[:2] == (21 + 2 * 3, 0)
    assert msd[:2] == (2 * 21 + 3, 0)
    assert paper[:2] == (2 * 21 + 3 + 21, 21)
    assert disjoint[:2] == (2 * 8, 0)
    assert plain.seconds > 0.001
