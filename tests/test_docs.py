"""The code in the README and the docs runs, block after block, in two steps and narrower; sweeps run it unchanged."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: bool) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    module = ModuleType(page.stem.replace("-", "_"))  # one that can be found again, so that what it defines can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        if not sweeps:
            block = re.sub(r"width=\d{4}", "width=512", re.sub(r"steps=\d+", "steps=2", block))
        exec(compile(block, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_are_there(page: Path) -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / picture).is_file(), picture


def test_the_plugin_that_is_walked_through_is_the_one_that_is_installed() -> None:
    source = ROOT / "docs" / "examples" / "panokit-palette" / "src" / "panokit_palette" / "__init__.py"
    assert f"```python\n{source.read_text()}```" in (ROOT / "docs" / "write-a-plugin.md").read_text()
