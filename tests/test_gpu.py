"""The checks and measurements for a GPU, in miniature on a CPU: `benchmarks/gpu`."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MINIATURE = ["--device", "cpu", "--tiny"]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The command, which is no part of an installed package."""
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("gpu.__main__")
    logging.set_verbosity(verbosity)


@pytest.mark.sweep
@pytest.mark.usefixtures("unannotated")
def test_all_of_it_runs_in_miniature(gpu: Any, tmp_path: Path) -> None:
    sections = ["correctness", "speed", "families", "processes"]
    assert gpu.main([*MINIATURE, "--sections", *sections, "--out", str(tmp_path / "made" / "tiny")]) == 0
    made = json.loads((tmp_path / "made" / "tiny.json").read_text())
    assert made["card"] == "CPU"
    assert made["models"] == "in miniature"
    entries = {(entry["section"], entry["name"]): entry for entry in made["entries"]}
    assert set(entries) == {(name, check) for name, section in gpu.SECTIONS.items() for check in section.checks}
    assert not [entry for entry in made["entries"] if entry["status"] == "failed"]
    skipped = [entry["note"] for entry in made["entries"] if entry["status"] == "skipped" and entry["section"] in sections]
    assert all("CUDA" in note or "xformers" in note for note in skipped)
    assert len(skipped) == 5
    halved = entries["correctness", "memory that ends halves the micro batch"]
    assert halved["numbers"]["halved, times"] == 1
    assert halved["note"].startswith("simulated")
    assert entries["correctness", "multidiffusion is diffusers own panorama"]["numbers"]["apart"] < 1e-5
    assert entries["speed", "MultiDiffusion, micro-batch 8"]["numbers"]["windows/s, diffusers"] > 0
    rows = [line for line in (tmp_path / "made" / "tiny.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(entries)


def test_a_check_that_fails_ends_no_other_one(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "made"
    outcome = gpu.Outcome

    def raises(bench: Any) -> Any:
        raise ZeroDivisionError("no\nlight")

    def skips(bench: Any) -> Any:
        raise gpu.Skipped("needs the moon")

    def sees(bench: Any) -> Any:
        return outcome(None, {"entries": len(json.loads(out.with_suffix(".json").read_text())["entries"])})

    def late(bench: Any) -> Any:
        bench.until = 0.0
        return outcome(True, {})

    checks: dict[str, Callable[[Any], Any]] = {
        "raises": raises,
        "is not so": lambda bench: outcome(float("nan") <= 1, {"apart": float("nan"), "share | of": 0.25}),
        "skips": skips,
        "sees": sees,
        "is late": late,
        "comes after": sees,
    }
    monkeypatch.setattr(gpu, "SECTIONS", {"first": gpu.Section(1.0, checks)})
    assert gpu.main([*MINIATURE, "--out", str(out)]) == 1
    made = json.loads(out.with_suffix(".json").read_text())
    assert [(entry["name"], entry["status"], entry["note"]) for entry in made["entries"]] == [
        ("raises", "failed", "ZeroDivisionError: no light"),
        ("is not so", "failed", ""),
        ("skips", "skipped", "needs the moon"),
        ("sees", "noted", ""),
        ("is late", "passed", ""),
        ("comes after", "skipped", "the time of its section is over"),
    ]
    assert made["entries"][1]["numbers"] == {"apart": "nan", "share | of": 0.25}
    assert made["entries"][3]["numbers"] == {"entries": 3}  # the results were there before the end
    assert "| first | is not so | failed | apart nan, share / of 0.25 |" in out.with_suffix(".md").read_text()


def test_operations_are_those_of_the_published_model(gpu: Any) -> None:
    """Known to many papers: about 0.8 TFLOP for 64 x 64 latents of Stable Diffusion 2."""
    counted = importlib.import_module("gpu.models").flops("sd2")
    assert [round(number / 1e8) for number in counted] == [8043, 9228, 25145, 25489]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40S", 362),
        ("CPU", None),
    ],
)
def test_the_peak_of_a_card_is_read_off_its_name(gpu: Any, name: str, peak: float | None) -> None:
    assert importlib.import_module("gpu.card").peak_of(name) == peak


def test_without_a_device_it_says_so(gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, line in ((["--device", "cuda"], "there is no CUDA device"), (["--device", "cpu"], "add --tiny")):
        with pytest.raises(SystemExit) as ended:
            gpu.main(words)
        assert ended.value.code == 2
        assert line in capsys.readouterr().err
