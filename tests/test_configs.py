"""Every composition in configs/ runs as it is, on a model and a canvas that are small."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from panokit import Fuser, Guidance, recipe, registry
from panokit.cli import main
from panokit.composition import build
from panokit.study.plan import Study

FOLDER = Path(__file__).parent.parent / "configs"
STUDY = FOLDER / "paper_landscapes.yaml"
MORE = FOLDER.parent / "benchmarks" / "paper"
STUDIES = {STUDY, FOLDER / "held_out_landscapes.yaml"}
CONFIGS = sorted({*FOLDER.glob("*.yaml")} - STUDIES)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_makes_a_panorama(folder: Path, tmp_path: Path, config: Path) -> None:
    shrunk = ["--model", str(folder), "--height", "32", "--width", "64", "--stride", "8", "--steps", "2"]
    out = tmp_path / "a.png"
    assert main(["generate", "a lake", "--config", str(config), *shrunk, "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size == (64, 32)
    made, asked = recipe.read(out), yaml.safe_load(config.read_text())
    for key in asked.keys() - {"model", "height", "width", "stride", "steps", "scheduler", "layout", "fuser", "guidances"}:
        assert made[key] == asked[key]
    assert len(made["guidances"]) == len(asked.get("guidances", []))
    for found, wanted in zip(made["guidances"], asked.get("guidances", []), strict=True):
        assert wanted.items() - {("plugin", wanted["plugin"])} <= {(k, v) for k, v in found.items() if not isinstance(v, list)}


@pytest.mark.sweep
def test_the_papers_study_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its methods and measures, as far as `--quick` goes."""
    assert main(["evaluate", "--config", str(STUDY), "--quick", "--out", str(tmp_path / "results")]) == 0
    report = capsys.readouterr().out
    assert "| MultiDiffusion | SyncDiffusion | MSD |" in report
    for measure in ("KID, EfficientNet-Lite0", "FID, world's CLIP", "CLIP score, world's CLIP", "stacked horizons", "seam"):
        assert f"| {measure} | " in report


@pytest.mark.parametrize("path", sorted({*STUDIES, *MORE.glob("*.yaml")}), ids=lambda path: path.stem)
def test_every_name_in_a_study_is_there(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    for model in ("landscapes", *data.get("models", {})):
        study = Study.of(data, model=model)
        for network in (*study.features.values(), *study.scores.values(), *study.wholes):
            assert registry.load("models", network)
        for method in study.methods.values():
            for guidance in method["guidances"]:
                assert isinstance(build(Guidance, guidance), Guidance)
            assert isinstance(build(Fuser, method.get("fuser", "multidiffusion")), Fuser)


def test_the_papers_protocol_is_the_same_command_with_another_model() -> None:
    """Section 4: 8 prompts, 500 panoramas of 1024 x 4096 and 2,000 references each."""
    study = Study.of(yaml.safe_load(STUDY.read_text()), model="stabilityai/stable-diffusion-2-base")
    assert (len(study.prompts), study.panoramas, study.references) == (8, 500, 2000)
    assert (study.height, study.width) == (1024, 4096)
