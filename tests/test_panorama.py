"""Pictures on disk."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panokit import Panorama
from panokit.errors import OutputError
from panokit.panorama import SmallCopy, contact_sheet, is_whole, sheet_size, to_image


@pytest.fixture
def panorama() -> Panorama:
    picture = torch.linspace(-0.1, 1.1, 3 * 4 * 6).reshape(3, 4, 6)
    return Panorama(torch.zeros(4, 2, 3), to_image(picture), {"prompt": "a lake"})


def test_values_are_clamped_and_rounded() -> None:
    image = to_image(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3).expand(3, 1, 3))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_the_ending_names_the_format(panorama: Panorama, tmp_path: Path, name: str) -> None:
    panorama.save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.size == (6, 4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_it_shows_itself_in_a_notebook(panorama: Panorama) -> None:
    assert Image.open(io.BytesIO(panorama._repr_png_())).size == (6, 4)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/a.png", "make it first"),
        ("a.xyz", "names no picture format"),
        ("a.psd", "names no picture format"),
        (".", "names no picture format"),
        ("d.png", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(panorama: Panorama, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "d.png").mkdir()
    with pytest.raises(OutputError, match=message):
        panorama.save(tmp_path / path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.png"]


def test_a_picture_wider_than_its_format_holds_is_told(panorama: Panorama, tmp_path: Path) -> None:
    wide = Panorama(panorama.latents, Image.new("RGB", (16_400, 8)), {})
    with pytest.raises(OutputError, match=r"WEBP holds 16383 pixels a side, .*; try \.png, \.tif or \.dzi"):
        wide.save(tmp_path / "a.webp")
    wide.save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_files_that_were_written_are_whole_and_with_any_other_byte_or_one_less_they_are_not(
    panorama: Panorama, tmp_path: Path
) -> None:
    picture, latents = tmp_path / "a.png", tmp_path / "a.safetensors"
    panorama.save(picture)
    assert is_whole(picture)
    assert not is_whole(picture, latents)
    panorama.save_latents(latents)
    assert is_whole(picture, latents)
    whole = picture.read_bytes()
    for place in range(len(whole)):
        picture.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert not is_whole(picture), place
        picture.write_bytes(whole[:place])
        assert not is_whole(picture), place
    picture.write_bytes(whole)
    for damaged in (b"", latents.read_bytes()[:-1], whole):
        latents.write_bytes(damaged)
        assert not is_whole(picture, latents)


@pytest.mark.parametrize("name", ["a.tif", "a.tiff"])
def test_a_tiff_is_whole_until_a_part_is_cut_off(panorama: Panorama, tmp_path: Path, name: str) -> None:
    panorama.save(tmp_path / name)
    assert is_whole(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for end in (0, 8, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:end])
        assert not is_whole(tmp_path / name)


@given(high=st.integers(1, 40), wide=st.integers(1, 40), side=st.integers(1, 40), strip=st.integers(1, 40))
def test_a_smaller_copy_is_the_same_whatever_the_strips(high: int, wide: int, side: int, strip: int) -> None:
    picture = torch.rand(3, high, wide, generator=torch.Generator().manual_seed(0))
    copies = SmallCopy((wide, high), side), SmallCopy((wide, high), side)
    copies[0].add(picture)
    for rows in picture.split(strip, dim=1):
        copies[1].add(rows)
    whole, small = (copy.image for copy in copies)
    assert whole.tobytes() == small.tobytes()
    factor = -(-max(wide, high) // side)
    assert small.size == (-(-wide // factor), -(-high // factor))
    assert max(small.size) <= side
    edge = picture[:, -(high % factor or factor) :, -(wide % factor or factor) :].mean((1, 2))
    assert small.getpixel((small.width - 1, small.height - 1)) == pytest.approx((edge * 255).tolist(), abs=1)


def test_a_picture_that_is_in_a_file_is_not_saved_from_its_smaller_copy(panorama: Panorama, tmp_path: Path) -> None:
    large = Panorama(panorama.latents, panorama.image, panorama.recipe, (60, 40), tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"was written to .*a\.png while it was decoded, and image is a smaller copy: copy"):
        large.save(tmp_path / "b.png")
    assert (large.size, panorama.size) == ((60, 40), (6, 4))
    assert "its 60 x 40 pixels are shown as 6 x 4" in large._repr_html_()
    again = pickle.loads(pickle.dumps(large))
    assert (again.size, again.file) == (large.size, large.file)


def test_a_panorama_in_the_memory_is_saved_as_a_deep_zoom_picture(panorama: Panorama, tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="Deep Zoom pictures are written by pyvips, which is not installed")
    panorama.save(tmp_path / "a.dzi")
    assert is_whole(tmp_path / "a.dzi")
    (tmp_path / "a_files" / "0" / "0_0.jpg").unlink()
    assert not is_whole(tmp_path / "a.dzi")


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=9))
def test_the_size_of_a_contact_sheet_is_known_before_its_pictures_are(sizes: list[tuple[int, int]]) -> None:
    recipe = {"prompt": "a lake", "seed": 0}
    made = [Panorama(torch.zeros(4, 2, 3), Image.new("RGB", size), recipe) for size in sizes]
    assert contact_sheet(made, 64).size == sheet_size(sizes, 64)


def test_a_failed_write_leaves_nothing(panorama: Panorama, tmp_path: Path) -> None:
    panorama.image.putpixel((0, 0), (1, 2, 3))
    with pytest.raises(OutputError, match="cannot write"):
        Panorama(panorama.latents, panorama.image.convert("RGBA"), {}).save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
