"""The code in the README and the docs runs, block after block, in two steps and narrower; sweeps run it unchanged.

Models of the hub are replaced by miniatures, whose windows have 32 x 32 pixels.
"""

import json
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from panokit import registry
from panokit.cli import program
from panokit.cli.values import read
from panokit.cli.words import sort

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in page.read_text()]


HUB, LORA, CONTROLNET, FILMS = (
    "stabilityai/stable-diffusion-xl-base-1.0",
    "watercolour.safetensors",
    "diffusers/controlnet-canny-sdxl-1.0",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The places of a miniature of the hub's model, and of what is added to it, by the names in the docs."""
    from panokit.testing.families import save_tiny_lora, tiny_controlnet, tiny_pipeline

    pipe, folder = tiny_pipeline("sdxl"), tmp_path_factory.mktemp("miniature")
    pipe.save_pretrained(folder / "sdxl")
    tiny_controlnet("sdxl").controlnet.save_pretrained(folder / "controlnet")
    tiny_pipeline("wan").save_pretrained(folder / "wan")
    lora, controlnet, films = save_tiny_lora(pipe, folder), folder / "controlnet", folder / "wan"
    return {HUB: str(folder / "sdxl"), LORA: str(lora), CONTROLNET: str(controlnet), FILMS: str(films)}


def shrunk(block: str, places: dict[str, str]) -> str:
    """Code for a miniature of the hub's model, with sizes to match."""
    for name, place in places.items():
        block = block.replace(f'"{name}"', repr(place))
    sizes = {r"height=\d+": "height=64", r"width=\d+": "width=128", r"window=\d+": "window=16", r"\(1024, 512\)": "(128, 64)"}
    sizes |= {r"num_frames=\d+": "num_frames=5", r"\bframes=\d+": "frames=9"}
    for size, small in sizes.items():
        block = re.sub(size, small, block)
    return block


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning", "ignore:the prompt has:panokit.errors.PromptWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: bool, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    module = ModuleType(
        f"docs_{page.stem}".replace("-", "_")
    )  # one that can be found again, so that what it defines can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        if re.search(r"\bray\b|panokit.cluster", block) and not sweeps:
            continue  # actors take many seconds to start
        if re.search(r"\bpipe\b", block):
            block = shrunk(block, request.getfixturevalue("miniature"))
        if not sweeps:
            block = re.sub(r"width=\d{4}", "width=512", re.sub(r"steps=\d+", "steps=2", block))
        with warnings.catch_warnings():
            if page.stem == "ray":
                warnings.simplefilter("default")  # Ray leaves files to the garbage collector
            exec(compile(block, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_are_there(page: Path) -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / picture).is_file(), picture


def commands() -> Iterator[tuple[str, str]]:
    """The commands of panokit in the README and the docs, each with its page."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"```(?:text|sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"\s*(?:\$ )?(?:srun |torchrun .*--no-python )?panokit (.+)", line):
                    args = shlex.split(match[1], comments=True)
                    args = args[: next((k for k, word in enumerate(args) if word in (">", "|", "&&")), None)]
                    if args[0] in program._COMMANDS and not {"$@", "--help"} & {*args}:  # others are no whole commands
                        yield page.stem, shlex.join(args)


@pytest.mark.parametrize(("page", "command"), [*commands()])
def test_the_commands_in_the_docs_are_taken(page: str, command: str) -> None:
    """Their options exist and take these values. What is made by them is another matter."""
    args = shlex.split(command)
    hints = program._hints(args[0])
    words = sort(args, hints, [name for name, hint in hints.items() if hint is bool])
    installed = {plugin.name for kind in registry.KINDS for plugin in registry.plugins(kind)} | {"palette"}  # of the docs
    assert [name for part, name in words.parts if part != "model" and name not in installed and name.islower()] == []
    if args[0] == "generate":
        for name, value in words.options:
            read(name, value, hints[name])
    else:
        program._arguments(args[0], words, hints)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: bool) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        exec(compile(source if sweeps else re.sub(r"steps=\d+", "steps=2", source), "notebook", "exec"), vars(module))
    assert (tmp_path / "lake.png").exists()


def test_the_plugin_that_is_walked_through_is_the_one_that_is_installed() -> None:
    source = ROOT / "docs" / "examples" / "panokit-palette" / "src" / "panokit_palette" / "__init__.py"
    assert f"```python\n{source.read_text()}```" in (ROOT / "docs" / "write-a-plugin.md").read_text()
