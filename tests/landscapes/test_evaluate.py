"""What measures of the drawn world say of pictures whose truth is known."""

import numpy as np
from numpy.typing import NDArray

from panokit_landscapes.evaluate import GrainMeasure
from panokit_landscapes.layout import stack


def test_noise_is_grain_in_plain_areas_and_a_second_scene_is_more_of_it_in_all() -> None:
    rng = np.random.default_rng(7)
    measure = GrainMeasure(scenes=4)

    def means(pictures: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return np.mean([[*measure(picture, "a landscape").values()] for picture in pictures], axis=0)

    single, stacked = ([stack(np.random.default_rng(seed), scenes).picture for seed in range(12)] for scenes in (1, 3))
    noise = [(picture + rng.normal(0, 2, picture.shape[:2])[..., None]).clip(0, 255).astype(np.uint8) for picture in single]
    true, more, noisy = means(single), means(stacked), means(noise)
    assert more[0] > 2 * true[0]
    assert more[1] < noisy[1] / 2
    assert noisy[0] < 3 * true[0]
    assert noisy[1] > 20 * true[1]
