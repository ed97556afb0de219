"""The pictures that panoramas are compared with."""

from pathlib import Path

import pytest
from PIL import Image

from panokit import SettingError
from panokit.study.references import given, grouped


def picture(path: Path, size: tuple[int, int] = (32, 16)) -> Path:
    Image.new("RGB", size).save(path)
    return path


def test_a_prompt_is_compared_with_pictures_named_after_it() -> None:
    lake, city = Path("a-lake-0-12345678.png"), Path("a-city-0-12345678.png")
    assert grouped(["a lake", "a city"], [city, lake]) == {"a lake": [lake], "a city": [city]}
    night = Path("a-lake-at-night-0-12345678.png")
    assert grouped(["a lake", "a lake at night"], [night, lake]) == {"a lake": [lake], "a lake at night": [night]}


def test_where_a_prompt_has_none_all_are_compared_with_all() -> None:
    paths = [Path("a-lake-0-12345678.png"), Path("IMG_1.jpg")]
    assert grouped(["a lake", "a city"], paths) == {"a lake": paths, "a city": paths}


def test_pictures_as_large_as_the_window_are_taken_and_other_files_are_not(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "b.png"), picture(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("of the journey")
    assert given(str(tmp_path), (16, 32)) == [two, one]


def test_what_is_no_reference_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no pictures"):
        given(str(tmp_path), (16, 32))
    with pytest.raises(SettingError, match="nowhere cannot be read: No such file or directory"):
        given(str(tmp_path / "nowhere"), (16, 32))
    picture(tmp_path / "a.png")
    with pytest.raises(SettingError, match=r"a.png is 32 x 16 pixels: .* as large as the model's window, 32 x 32; resize them"):
        given(str(tmp_path), (32, 32))
    whole = picture(tmp_path / "b.png", (200, 200)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingError, match=r"in the reference folder, .*b.png is damaged.*, or remove it"):
        given(str(tmp_path), (16, 32))
