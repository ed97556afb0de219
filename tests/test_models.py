"""Models by name, and the families that read them."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest
import torch
from diffusers import ModelMixin

from panokit import Denoiser, Level, Model, Runtime, Sampler, SettingError, WrappedDenoiser, load_model, recipe
from panokit.backbones.diffusers.model import is_stable_diffusion
from panokit.cli import main
from panokit.errors import ContractError, ModelError, PluginNotFoundError
from panokit.family import Family
from panokit.jobs import Worker
from panokit.models import bytes_of, family_of
from panokit.settings import Execution
from panokit.testing import Check, conforms
from panokit.testing.families import tiny_controlnet, tiny_pipeline
from panokit.testing.tiny import tiny_model

SIZE: dict[str, Any] = {"height": 16, "width": 32, "steps": 2, "progress": False}


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An outside family, which reads folders whose pipeline is a ToyPipeline, and a model that is such a family itself."""
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[panokit.families]\ntoys = outside_family:Toys\n\n[panokit.models]\nformula = outside_family:Toys\n"
    )
    (tmp_path / "outside_family.py").write_text(
        "from dataclasses import dataclass\n"
        "from panokit import Family, Model\n"
        "from panokit.testing.toys import ToyCodec, ToyDenoiser\n\n"
        "@dataclass(frozen=True)\n"
        "class Toys(Family):\n"
        "    side: int = 8\n\n"
        "    @classmethod\n"
        "    def reads(cls, index):\n"
        "        return index.get('_class_name') == 'ToyPipeline'\n\n"
        "    def load(self, source, name):\n"
        "        return Model(ToyDenoiser((self.side, self.side), 4), ToyCodec(), name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("outside_family", None)
    sys.modules.pop("outside_wrapper", None)


def test_a_family_that_comes_from_outside_reads_its_folders(toys: Path, cpu: Runtime) -> None:
    folder = toys / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    assert family_of(str(folder)) == "toys"
    model = load_model(str(folder), side=6)
    assert model.denoiser.window == (6, 6)
    assert model.part == {"plugin": str(folder), "side": 6}
    assert Sampler(model, runtime=cpu)("a lake", **SIZE).latents.shape == (4, 8, 16)


def test_a_model_may_be_a_family_without_a_folder(toys: Path, cpu: Runtime) -> None:
    made = Sampler({"plugin": "formula", "side": 4}, runtime=cpu)("a lake", **SIZE)
    assert made.recipe["model"] == {"plugin": "formula", "side": 4}
    kept = {key: value for key, value in made.recipe.items() if key in ("prompt", "model", "seed", "height", "width", "steps")}
    assert torch.equal(Worker({"accelerator": "cpu"}).make(kept).latents, made.latents)
    assert torch.equal(Worker({"accelerator": "cpu"}, trusted=False).make(kept).latents, made.latents)


@final
class Doubled(WrappedDenoiser):
    """A denoiser around another one, whose predictions are twice those of the other one."""

    def __call__(self, x: torch.Tensor, level: Level, condition: Any) -> torch.Tensor:
        return 2 * self.inner(x, level, condition)


@conforms(lambda: Doubled(tiny_model().denoiser))
def test_a_wrapped_denoiser(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_wrapped_denoiser_passes_everything_on(name: str) -> None:
    inner = load_model(tiny_controlnet(name), window=16).denoiser
    around = Doubled(inner)
    for attribute in (
        "channels",
        "window",
        "training",
        "multiple",
        "scheduler",
        "steps",
        "guidance_scale",
        "fields",
        "choices",
    ):
        assert getattr(around, attribute) == getattr(inner, attribute)
    assert {*Denoiser.__annotations__} <= {*vars(around)}  # whatever else the contract has
    assert [*around.modules()] == [*inner.modules()]
    noises = [part.noise((16, 24), torch.Generator().manual_seed(0)) for part in (around, inner)]
    assert torch.equal(*noises)
    around.configure(Execution(checkpointing=True))
    assert any(network.is_gradient_checkpointing for network in inner.modules() if isinstance(network, ModelMixin))


@pytest.fixture
def wrapped(toys: Path) -> Path:
    """A model that is made of another one, whose denoiser it doubles."""
    info = toys / "outside-1.0.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "twice = outside_wrapper:Twice\n")
    (toys / "outside_wrapper.py").write_text(
        "from collections.abc import Mapping\n"
        "from dataclasses import dataclass\n"
        "from typing import Any\n"
        "from panokit import Family, Model, WrappedDenoiser, load_model\n\n"
        "class Doubled(WrappedDenoiser):\n"
        "    def __call__(self, x, level, condition):\n"
        "        return 2 * self.inner(x, level, condition)\n\n"
        "@dataclass(frozen=True)\n"
        "class Twice(Family):\n"
        "    model: str | Mapping[str, Any] = 'landscapes'\n\n"
        "    @classmethod\n"
        "    def reads(cls, index):\n"
        "        return False\n\n"
        "    def load(self, source, name):\n"
        "        inner = load_model(self.model)\n"
        "        return Model(Doubled(inner.denoiser), inner.codec, name)\n"
    )
    return toys


def test_a_model_may_be_made_of_another_one(wrapped: Path, cpu: Runtime) -> None:
    part = {"plugin": "twice", "model": {"plugin": "formula", "side": 4}}
    made = Sampler(part, runtime=cpu)("a lake", **SIZE)
    assert made.recipe["model"] == part
    kept = {key: value for key, value in made.recipe.items() if key in ("prompt", "model", "seed", "height", "width", "steps")}
    assert torch.equal(Worker({"accelerator": "cpu"}, trusted=False).make(kept).latents, made.latents)
    assert not torch.equal(Sampler(part["model"], runtime=cpu)("a lake", **SIZE).latents, made.latents)
    assert load_model({"plugin": "twice", "model": "twice"}).part == {"plugin": "twice", "model": "twice"}  # of landscapes
    assert bytes_of("twice") == bytes_of({"plugin": "twice", "model": {"plugin": "landscapes"}}) == bytes_of("landscapes") > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("elsewhere", "the recipe names the model 'elsewhere', which is not installed by that name: trust it"),
        ({"plugin": "owner/model"}, "the recipe names the model 'owner/model', which is not installed"),
        ({"plugin": "landscapes", "vae": "here"}, "the recipe sets vae of its model, which reads files: trust it"),
    ],
)
def test_a_recipe_of_a_stranger_names_installed_models_alone_inside_others(wrapped: Path, model: Any, message: str) -> None:
    job = {"prompt": "a lake", "model": {"plugin": "twice", "model": {"plugin": "twice", "model": model}}}
    with pytest.raises(SettingError, match=message):
        Worker({"accelerator": "cpu"}, trusted=False).make(job)


def test_a_name_of_a_model_inside_another_one_may_be_any_path() -> None:
    recipe.check_names({"model": {"plugin": "twice", "model": {"plugin": "C:/models/sd"}}})
    with pytest.raises(SettingError, match="which is code"):
        recipe.check_names({"fuser": {"plugin": "twice:Twice"}})


def test_a_broken_family_keeps_nobody_from_his_model(toys: Path, folder: Path) -> None:
    info = toys / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[panokit.families]\naaa = nowhere:Lost\n")
    assert family_of(str(folder)) == "diffusers"
    (toys / "empty").mkdir()
    assert load_model(tiny_pipeline("sd"), window=8).denoiser.window == (8, 8)
    with pytest.raises(ModelError, match=r"empty has no model_index.json, .*; aaa fails: .*cannot be imported"):
        family_of(str(toys / "empty"))


def test_a_strangers_settings_of_a_model_import_nothing(toys: Path) -> None:
    (toys / "evil.py").write_text("raise SystemExit('imported')\n")
    stranger = Worker({"accelerator": "cpu"}, trusted=False)
    with pytest.raises(SettingError, match="which is code"):
        stranger.plan({"prompt": "a lake", "model": {"plugin": "formula", "side": {"plugin": "evil:X"}}})
    assert "evil" not in sys.modules


def test_a_folder_that_nobody_reads_names_the_families(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["a", "b"]}))
    message = f"no family reads the model {tmp_path}, with transformer: installed are diffusers"
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(str(tmp_path))
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        ModelError, match=f"the folder {tmp_path} has no model_index.json, so it is no model in diffusers' format"
    ):
        load_model(str(tmp_path))
    for text in ("{", "[]"):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ModelError, match=r"model_index\.json is damaged"):
            load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["", "x" * 5000, f"owner/{'x' * 5000}", "a\0b", "owner/a b", "/dev/null", "~/model", "a/b\nc"])
def test_a_name_that_no_model_can_have_is_told_in_one_line(name: str) -> None:
    with pytest.raises(PluginNotFoundError, match=r"^no model is called ") as error:
        load_model(name)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_weights_of_the_only_variant_are_read(folder: Path, tmp_path: Path, cpu: Runtime) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    with pytest.raises(ModelError, match=r"has no bf16 weights in unet/ but of the variant fp16"):
        load_model(str(copy), variant="bf16")
    models = (str(folder), str(copy), {"plugin": str(copy), "variant": "fp16"})
    plain, only, chosen = (Sampler(model, runtime=cpu)("a lake", **SIZE).latents for model in models)
    assert torch.equal(plain, only)
    assert torch.equal(plain, chosen)
    with pytest.raises(ModelError, match="has no fp16 weights but plain ones: leave the model's variant out"):
        load_model(str(folder), variant="fp16")


def test_the_window_is_a_setting(folder: Path) -> None:
    assert load_model(str(folder), window=16).denoiser.window == (16, 16)
    with pytest.raises(SettingError, match="window is 13: it must be a multiple of 2 cells; the nearest is 12"):
        load_model(str(folder), window=13)
    with pytest.raises(
        SettingError,
        match=r"there is no setting 'varient', .* did you mean 'variant'",
    ):
        load_model(str(folder), varient="fp16")
    with pytest.raises(SettingError, match="window of diffusers came as 'wide': it must be a whole number"):
        load_model(str(folder), window="wide")


def test_other_pipelines_with_a_unet_are_not_stable_diffusion() -> None:
    assert is_stable_diffusion({"unet": None, "text_encoder": None, "vae": None})
    assert not is_stable_diffusion({"unet": None, "text_encoder": None, "text_encoder_2": None})
    assert not is_stable_diffusion({"transformer": None})


def test_the_command_line_sets_settings_of_the_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a lake", "--model", str(folder), "--model.window=16", "--height", "32", "--width", "32", "--quiet"]
    assert main([*words, "--steps", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert recipe.read(tmp_path / "a.png")["model"] == {"plugin": str(folder), "window": 16}
    assert main(["rerun", str(tmp_path / "a.png"), "--trust", "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    capsys.readouterr()
    assert main(["generate", "--model.help", "landscapes"]) == 0
    assert "variant: str | None = None" in capsys.readouterr().out
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    assert f"the recipe names the model '{str(folder)[:40]}" in capsys.readouterr().err


def test_a_model_that_is_no_part_is_refused(cpu: Runtime) -> None:
    with pytest.raises(SettingError, match=r"the model came as {'name': 'landscapes'}: give its name, or {plugin: NAME"):
        Sampler({"name": "landscapes"}, runtime=cpu)
    assert isinstance(load_model("landscapes"), Model)


def test_a_family_that_takes_a_model_in_hand_must_say_how() -> None:
    class Claims(Family):
        holds = classmethod(lambda cls, model: True)
        reads = classmethod(lambda cls, index: False)

        def load(self, source: str, name: str) -> Model:
            raise AssertionError(source)

    with pytest.raises(ContractError, match=r"Claims\.holds says that it takes a int, and Claims has no hold: write one"):
        Claims().hold(3)
