"""What a project says about itself: its version, its licence, how to cite it, and what a source distribution holds."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from panokit.cli import main

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_the_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"panokit {version('panokit')}\n"
    assert version("panokit") == PROJECT["version"] == CITATION["version"]


def test_python_runs_panokit_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "panokit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"panokit {version('panokit')}\n"


def test_the_citation_has_what_its_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert all(CITATION[key] for key in ("message", "title", "authors"))
    assert CITATION["license"] == PROJECT["license"]


@pytest.mark.parametrize("paper", CITATION["references"], ids=lambda paper: paper["title"].partition(":")[0])
def test_a_paper_can_be_found(paper: dict[str, Any]) -> None:
    assert all(author["family-names"] and author["given-names"] for author in paper["authors"])
    (identifier,) = paper["identifiers"]
    arxiv = re.fullmatch(r"arXiv:(\d{4}\.\d{5})", identifier["value"])
    assert arxiv
    assert paper["url"] == f"https://arxiv.org/abs/{arxiv[1]}"
    assert paper["year"] >= 2000 + int(arxiv[1][:2])


def test_the_licence_is_there_and_named() -> None:
    name, others = PROJECT["license-files"]
    assert {path.name.partition(".")[0] for path in ROOT.glob(others)} == {"openseadragon", "pannellum"}  # of the viewers
    text = (ROOT / name).read_text()
    assert text.split("\n", 4)[1:3] == [f"{'':33}Apache License", f"{'':27}Version 2.0, January 2004"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert "[yyyy]" not in text
    assert PROJECT["license"] == metadata("panokit")["License-Expression"] == "Apache-2.0"


def test_what_a_source_distribution_names_is_there() -> None:
    names = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in names if not (ROOT / name.lstrip("/")).exists()] == []
    assert {"/LICENSE", "/CHANGELOG.md", "/CONTRIBUTING.md", "/CITATION.cff", "/README.md", "/SECURITY.md"} <= {*names}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
