"""PNG by rows: other programs read the same pixels and texts, however the rows came."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panokit import png
from panokit.png import STORED, PngWriter


@pytest.mark.parametrize("level", [STORED, 6])
@given(cuts=st.lists(st.integers(0, 23), max_size=4), width=st.integers(1, 40))
def test_any_strips_make_the_same_picture(level: int, cuts: list[int], width: int) -> None:
    rows = np.random.default_rng(width).integers(0, 256, (23, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    writer = PngWriter(file, (width, 23), {"panokit": "{}", "parameters": "湖 é\nSteps: 3"}, level)
    for strip in np.split(rows, sorted(cuts)):
        writer.write(strip)
    writer.close()
    with Image.open(file) as image:
        assert (image.size, image.mode) == ((width, 23), "RGB")
        assert image.info == {"panokit": "{}", "parameters": "湖 é\nSteps: 3"}  # before any pixel is decoded
        assert np.array_equal(np.asarray(image), rows)
    with Image.open(file) as image:
        image.verify()


def test_a_strip_is_compressed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MOST", 100)
    rows = np.random.default_rng(0).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    writer = PngWriter(file, (20, 50), {})
    writer.write(rows)
    writer.close()
    assert np.array_equal(np.asarray(Image.open(file)), rows)
