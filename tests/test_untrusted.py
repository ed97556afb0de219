"""Files are plain data: whatever is written into one, and wherever, imports nothing that its reader does not trust.

Modules lie on the path that leave a mark when they are imported. Every field of a recipe, every way to write something that a
parser might take for a class, and every file that carries prompts: nothing may leave a mark but a plugin's name,
`module:Class`, in what is the user's own.
"""

import builtins
import importlib.metadata
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from panokit import Model, PanokitError, Panorama, Runtime, Sampler, recipe
from panokit.cli import main
from panokit.jobs import JOB, Worker
from panokit.models import load_model
from panokit.recipe import MODEL_FILES
from panokit.sampler import Plan
from panokit.study.plan import Study

pytestmark = pytest.mark.filterwarnings("default")  # for prompts that are too long, and other versions

FUZZ = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "faults" / "files.py"))
CLASS, PLUGIN = "panokit_canary.Sings", "panokit_canary:Sings"
MODULES = ("panokit_canary", "panokit-canary", "1canary", "canarý")

RECIPE: dict[str, Any] = {
    **FUZZ["NUMERICS"],
    "panokit": "0.1.0",
    "torch": "2.10.0",
    "diffusers": "0.42.0",
    "prompt": {"boxes": [[[0, 0, 0.5, 1], "a lake"]], "elsewhere": "hills"},
    "negative_prompt": "fog",
    "steps": 2,
    "guidance_scale": 7.5,
    "guidance_end": 0.5,
    "stride": 8,
    "wrap": False,
    "seed": 6,
    "height": 32,
    "width": 32,
    "model": "tiny",
    "scheduler": {"plugin": "ddim", "options": {"eta": 0.5}},
    "layout": {"plugin": "spotdiffusion", "unit": 2},
    "image": None,
    "strength": None,
    "mask": None,
    "at": None,
    "control_image": None,
    "ip_adapter_image": None,
    "hashes": {"image": "0" * 64},
    "fuser": {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.2},
    "guidances": [
        {"plugin": "msd", "weight": 10.0, "levels": 2},
        {"plugin": "syncdiffusion", "weight": 20.0, "metric": "efficientnet"},
    ],
}

TEXTS = [
    CLASS,
    PLUGIN,
    f" {CLASS}",
    f"{CLASS}\n",
    "panokit_canary",
    "panokit_canary.sing",
    "panokit-canary.Sings",
    "1canary.Sings",
    "canarý.Sings",
    "canaries.deep.Sings",
    "\uff50anokit_canary.Sings",  # a wide p, which Python's own parser takes for a p
    f"class_path: {CLASS}",
    f"{{class_path: {CLASS}}}",
    f"{{class_path: {CLASS}, init_args: {{other: {{class_path: {CLASS}}}}}}}",
    f"- class_path: {CLASS}",
    f"[{{class_path: {CLASS}}}]",
    f"? class_path\n: {CLASS}",
    f"class_path: &a {CLASS}\nother: *a",
    f"%YAML 1.1\n---\nclass_path: {CLASS}\n...",
    json.dumps({"class_path": CLASS}),
    json.dumps(json.dumps({"class_path": CLASS})),
    f'{{"class_path": 1, "class_path": "{CLASS}"}}',
    f'{{"\\u0063lass_path": "{CLASS}"}}',
    f'{{"class_path": "{CLASS}"',
    f"!!python/object:{CLASS} {{}}",
    f"!!python/name:{CLASS} ''",
    f"!!python/object/apply:{CLASS} []",
    "!!python/module:panokit_canary ''",
    f"{{plugin: {PLUGIN}}}",
    f"lambda: {CLASS}()",
    "@FILE@",
    "-",
]
"""What is text, and might be read once more; FILE is replaced by the path of a file that says such a thing."""

CLASS_PATH = {"class_path": CLASS}
STRUCTURES = [
    json.dumps(value)
    for value in (
        CLASS_PATH,
        {"class_path": CLASS, "init_args": {}},
        {"class_path": CLASS, "init_args": {"other": CLASS_PATH}, "dict_kwargs": {"more": CLASS_PATH}},
        {"class_path": "1canary.Sings", "__path__": "a.yaml"},
        [CLASS_PATH],
        [[{"a": [CLASS_PATH]}]],
        [CLASS, PLUGIN],
        {"Class_Path": CLASS},
        {" class_path\n": CLASS},
        {CLASS: 1},
        {json.dumps(CLASS_PATH): 1},
        {"plugin": PLUGIN},
        {"plugin": CLASS_PATH},
        {"plugin": "syncdiffusion", "metric": CLASS_PATH},
        {"plugin": "syncdiffusion", "metric": CLASS},
        {"boxes": [[[0, 0, 1, 1], CLASS_PATH]]},
        {"boxes": [[[0, 0, 1, 1], "a lake"]], "class_path": CLASS},
        {"boxes": [[[0, 0, 1, 1], "a lake"]], "elsewhere": [CLASS_PATH]},
        {"boxes": json.dumps([[[0, 0, 1, 1], CLASS_PATH]])},
    )
] + [
    f'{{"class_path": "x", "class_path": "{CLASS}"}}',
    f'{{"boxes": [[[0, 0, 1, 1], "a lake"]], "boxes": {json.dumps(CLASS_PATH)}}}',
    f"{'[' * 40}{json.dumps(CLASS_PATH)}{']' * 40}",
    '{"a": ' * 900 + json.dumps(CLASS_PATH) + "}" * 900,
    f'{{"\\u0063lass_path": "{CLASS}"}}',
    f'{{"class_path": "\\u0070anokit_canary.Sings", "init_args": {{"\\u0063lass_path": "{CLASS}"}}}}',
]
"""What is more than text, as raw JSON."""

HERE = "\0here"
"""Where a field is in a template."""


def with_value(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The recipe with another value at a path."""
    data = deepcopy(RECIPE)
    inner: Any = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return data


OF_MODELS = (*sorted(MODEL_FILES), "variant", "torch_dtype", "window", "positions", "true_cfg_scale", "beside")
"""Settings of models, but for the revision, which may be any text."""


def templates() -> dict[str, dict[str, Any]]:
    """Recipes with a place for something strange, by where it is: each value, a key of each mapping, and what is not there."""
    paths: list[tuple[Any, ...]] = []

    def walk(data: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        if isinstance(data, dict):
            paths.extend((*path, extra) for extra in (HERE, "beside"))
        for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
            if path != ("prompt", "boxes", 0, 0) or key == 0:  # one number of a box is like the others
                walk(item, (*path, key))

    for key, item in RECIPE.items():
        walk(item, (key,))
    paths.extend((extra,) for extra in (HERE, "beside", "class_path", "config", "texts", "devices"))
    names = [".".join("KEY" if step == HERE else str(step) for step in path) for path in paths]
    fields = {name: with_value(path, 1 if path[-1] == HERE else HERE) for name, path in zip(names, paths, strict=True)}
    fields |= {f"model.{setting}": {**RECIPE, "model": {"plugin": "tiny", setting: HERE}} for setting in OF_MODELS}
    inside = {"model.model": HERE, "model.model.plugin": {"plugin": HERE}, "model.model.vae": {"plugin": "tiny", "vae": HERE}}
    fields |= {name: {**RECIPE, "model": {"plugin": "scalecrafter", "model": model}} for name, model in inside.items()}
    regions = {
        name: [{"box": [0, 0, 1, 1], "text": "a lake", name: HERE}] for name in ("weight", "ip_adapter_image", "class_path")
    }
    regions["mask"] = [{"mask": HERE, "text": "a lake"}]
    return fields | {f"prompt.regions.{name}": {**RECIPE, "prompt": {"regions": given}} for name, given in regions.items()}


FIELDS = templates()
PROMPTS = ("prompt", "negative_prompt", "prompt.boxes.0.1", "prompt.elsewhere")
"""Where any text is what to paint."""
PARTS = ("scheduler", "layout", "fuser", "guidances")
VERSIONS = ("panokit", "torch", "diffusers")
"""Where text is compared, and nothing else."""


def filled(template: dict[str, Any], raw: str) -> str:
    """The template as JSON, with raw JSON in its place; if that is a key, as text."""
    text, place = json.dumps(template), json.dumps(HERE)
    key = raw if raw.startswith('"') else json.dumps(raw)
    return text.replace(f"{place}: ", f"{key}: ").replace(place, raw)


class Canaries:
    """Which of the modules were imported since somebody looked."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def take(self) -> list[str]:
        heard, self.heard[:] = [*self.heard], []
        for name in (*MODULES, "canaries", "canaries.deep"):
            sys.modules.pop(name, None)
        return heard


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder for the path, with modules that leave a mark, and the tiny model installed by a name."""
    path = tmp_path_factory.mktemp("site")
    code = (
        "import builtins\n"
        "builtins.panokit_heard.append(__name__)\n"
        "def sing(*args, **kwargs): builtins.panokit_heard.append('sing')\n"
        "class Sings:\n"
        "    sing = staticmethod(sing)\n"
        "    def __init__(self, *args, **kwargs): sing()\n"
    )
    (path / "canaries").mkdir()
    for name in (*MODULES, "canaries/__init__", "canaries/deep"):
        (path / f"{name}.py").write_text(code)
    (path / "outside_tiny.py").write_text(f"PATH = {str(folder)!r}\n")
    info = path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[panokit.models]\ntiny = outside_tiny:PATH\n")
    (path / "file.yaml").write_text(yaml.safe_dump(CLASS_PATH))
    return path


@pytest.fixture(scope="module")
def few(site: Path) -> list[Any]:
    """What is installed, as far as it matters here: to look through a whole environment takes a while."""
    return [importlib.metadata.distribution("panokit"), *importlib.metadata.distributions(path=[str(site)])]


@pytest.fixture
def canaries(site: Path, few: list[Any], unannotated: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: few)
    found = Canaries()
    monkeypatch.setattr(builtins, "panokit_heard", found.heard, raising=False)
    yield found
    found.take()


@pytest.fixture
def texts(site: Path) -> list[str]:
    return [text.replace("@FILE@", str(site / "file.yaml")) for text in TEXTS]


@pytest.fixture(scope="module")
def read_once() -> Callable[[str], Model]:
    """`load_model`, which reads a model once and shares it."""
    read = cache(load_model)
    return lambda source, **settings: (
        read(source) if isinstance(source, str) and not settings else load_model(source, **settings)
    )


@pytest.fixture
def painted(read_once: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes of what is painted, without a step."""
    asked: list[Any] = []

    def start(self: Plan, out: Path, **options: Any) -> Panorama:
        asked.append(json.loads(json.dumps(self.recipe)))
        panorama = Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (4, 4)), self.recipe)
        panorama.save(out)
        return panorama

    monkeypatch.setattr(Plan, "make", start)
    monkeypatch.setattr("panokit.models.load_model", read_once)
    return asked


ENDINGS = (".png", ".jpg", ".webp")


def picture(path: Path, text: str) -> Path:
    """A picture that says it has that recipe, as panokit's pictures do."""
    options: dict[str, Any] = {}
    if path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("panokit", text)
    else:
        exif = Image.Exif()
        exif[0x010E] = text
        options["exif"] = exif.tobytes()
    Image.new("RGB", (4, 4)).save(path, **options)
    return path


def spelled(field: str, texts: list[str]) -> list[str]:
    """All that may be strange in a field, as raw JSON."""
    sound = texts if field in PROMPTS else ["1canary.Sings"] if field in VERSIONS else []
    return [*(json.dumps(text) for text in texts if text not in sound), *STRUCTURES]


def one_line(said: str) -> bool:
    return said.startswith("panokit: ") and said.count("\n") == 1 and "unexpected" not in said


@pytest.fixture
def known(unannotated: None) -> Iterator[set[str]]:
    """The modules that sound files import. Pictures are planned, and not painted."""
    with FUZZ["unpainted"]():
        yield FUZZ["modules_of_sound_files"]()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.integers(0, 1 << 32))
def test_a_mangled_file_makes_its_picture_or_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], case: int
) -> None:
    outcome = FUZZ["attempt"](case, tmp_path_factory.mktemp("case"), known)
    assert not outcome.problems, outcome


@pytest.mark.parametrize("case", FUZZ["ONCE_FAILED"])
def test_what_once_broke_a_rule_does_not_any_more(tmp_path: Path, known: set[str], case: int) -> None:
    outcome = FUZZ["attempt"](case, tmp_path, known)
    assert not outcome.problems, outcome


def test_the_recipe_itself_is_painted(tmp_path: Path, canaries: Canaries, painted: list[Any]) -> None:
    """So whatever is refused below is refused for what is strange in it. It has all fields of a recipe."""
    for ending in ENDINGS:
        stranger = picture(tmp_path / f"a{ending}", json.dumps(RECIPE))
        assert main(["rerun", str(stranger), "--out", str(tmp_path / "again.png")]) == 0
    assert [asked["prompt"] for asked in painted] == [RECIPE["prompt"]] * 3
    assert painted[0].keys() <= RECIPE.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_a_strangers_picture_imports_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    canaries: Canaries,
    painted: list[Any],
    texts: list[str],
    field: str,
    sweeps: bool,
) -> None:
    """A prompt is tried with every spelling, and another field with a third of them; sweeps try all. Formats take turns."""
    turn, raws, wrong = [*FIELDS].index(field), spelled(field, texts), []
    if not field.startswith("prompt") and not sweeps:
        raws = raws[turn % 3 :: 3]
    for k, raw in enumerate(raws, start=turn):
        stranger = picture(tmp_path / f"a{ENDINGS[k % 3]}", filled(FIELDS[field], raw))
        status = main(["rerun", str(stranger), "--out", str(tmp_path / "again.png")])
        said, heard = capsys.readouterr().err, canaries.take()
        if heard or status != 2 or painted or not one_line(said):
            wrong.append((raw, status, heard, said))
    assert not wrong, f"{len(wrong)} of {len(raws)}: {wrong[:3]}"


def test_text_in_a_strangers_picture_is_painted_as_it_is(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str]
) -> None:
    for k, text in enumerate(texts):
        regions = {"boxes": [[[0, 0, 0.5, 1], text]], "elsewhere": texts[k - 1]}
        strange = {"prompt": regions if k % 2 else text, "negative_prompt": texts[k - 2]}
        again = tmp_path / f"again{ENDINGS[k % 3]}"
        stranger = picture(tmp_path / f"a{ENDINGS[k % 3]}", json.dumps({**RECIPE, "guidances": [], **strange}))
        assert main(["rerun", str(stranger), "--out", str(again)]) == 0
        assert strange.items() <= painted.pop().items()
        assert strange.items() <= recipe.read(again).items()
        assert canaries.take() == []


def test_a_picture_of_such_a_text_is_made_to_the_end_and_again(tmp_path: Path, canaries: Canaries) -> None:
    out, again = tmp_path / "a.png", tmp_path / "again.png"
    words = ["--model", "tiny", "--height", "16", "--width", "24", "--steps", "2", "--out", str(out)]
    assert main(["generate", *words, "--", f'{{"class_path": "{CLASS}"}}']) == 0
    assert main(["rerun", str(out), "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert recipe.read(again)["prompt"] == f'{{"class_path": "{CLASS}"}}'
    assert canaries.take() == []


@pytest.mark.parametrize("more", [[], ["--trust"]])
def test_a_class_is_imported_by_its_plugins_name_once_it_is_trusted_and_by_no_other(
    tmp_path: Path, canaries: Canaries, more: list[str]
) -> None:
    """So what is not imported above could have been."""
    for part in (PLUGIN, {"plugin": PLUGIN}):
        stranger = picture(tmp_path / "a.png", json.dumps({**RECIPE, "fuser": part}))
        assert main(["rerun", str(stranger), "--out", str(tmp_path / "again.png"), *more]) == 2
        assert canaries.take() == (["panokit_canary"] if more else [])


@pytest.mark.parametrize("field", [*PARTS, "guidances.0", "guidances.1.metric", "prompt", "prompt.boxes.0.1", "seed", "model"])
def test_trust_makes_no_class_of_what_is_no_plugins_name(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str], field: str
) -> None:
    for raw in [raw for raw in spelled(field, texts[::2]) if not names_a_plugin(field, raw)]:
        stranger = picture(tmp_path / "a.png", filled(FIELDS[field], raw))
        assert main(["rerun", str(stranger), "--trust", "--out", str(tmp_path / "again.png")]) != 0, raw
        assert canaries.take() == [], raw


def names_a_plugin(field: str, raw: str) -> bool:
    """Whether the raw JSON is a plugin by its name, in a place for one: which is imported for whoever is trusted."""
    parts = (json.dumps(PLUGIN), json.dumps({"plugin": PLUGIN}), json.dumps([CLASS, PLUGIN]))
    return field.partition(".")[0] in PARTS and raw in parts


RECIPE_OF_A_JOB = {key: value for key, value in RECIPE.items() if key in JOB}
JOBS = [field for field in FIELDS if field.partition(".")[0] in (*JOB, "KEY", "beside", "class_path")]


@pytest.mark.parametrize("field", JOBS)
def test_a_file_of_jobs_imports_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canaries: Canaries, painted: list[Any], texts: list[str], field: str
) -> None:
    template = {key: value for key, value in FIELDS[field].items() if key in JOB or value == HERE or key == HERE}
    lines = [filled(template, raw) for raw in spelled(field, texts)]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(lines))
    assert main(["generate", "--jobs", str(path), "--out", f"{tmp_path}/"]) == 2
    assert canaries.take() == []
    said = capsys.readouterr().err
    assert one_line(said)
    assert f"and {len(lines) - 5} more" in said
    assert not painted


@pytest.mark.parametrize("part", [{"fuser": PLUGIN}, {"layout": {"plugin": PLUGIN}}, {"guidances": ["msd", PLUGIN]}])
def test_a_job_names_a_class_once_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canaries: Canaries, part: dict[str, Any]
) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({**RECIPE_OF_A_JOB, **part}))
    words = ["generate", "--jobs", str(tmp_path / "jobs.jsonl"), "--out", f"{tmp_path}/"]
    assert main(words) == 2
    assert "which is code and no installed plugin's name: trust the file of jobs (--trust)" in capsys.readouterr().err
    assert canaries.take() == []
    assert main([*words, "--trust"]) == 2  # it is no plugin
    assert canaries.take() == ["panokit_canary"]


def test_text_in_a_file_of_jobs_is_painted_as_it_is(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str]
) -> None:
    jobs = [{"prompt": text, "negative_prompt": texts[k - 1]} for k, text in enumerate(texts)]
    regions = [{"prompt": {"boxes": [[[0, 0, 1, 1], text]], "elsewhere": texts[k - 1]}} for k, text in enumerate(texts[::3])]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, [*jobs, *regions])))
    words = ["--model", "tiny", "--height", "16", "--width", "24", "--steps", "2", "--out", f"{tmp_path}/"]
    assert main(["generate", "--jobs", str(path), *words]) == 0
    assert [asked["prompt"] for asked in painted] == [job["prompt"] for job in [*jobs, *regions]]
    assert [asked["negative_prompt"] for asked in painted[: len(jobs)]] == [job["negative_prompt"] for job in jobs]
    assert canaries.take() == []


def test_lines_of_prompts_are_painted_as_they_are(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str]
) -> None:
    lines = [text for text in texts if text.strip() == text and "\n" not in text]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    words = ["--model", "tiny", "--height", "16", "--width", "24", "--steps", "2", "--out", f"{tmp_path}/"]
    assert main(["generate", "--prompts", str(path), *words]) == 0
    assert [asked["prompt"] for asked in painted] == lines
    assert canaries.take() == []


def test_texts_in_a_configuration_are_painted_as_they_are(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str]
) -> None:
    path = tmp_path / "a.yaml"
    size = {"model": "tiny", "height": 16, "width": 24, "steps": 2}
    regions = [{"boxes": [[[0, 0, 1, 1], text]], "elsewhere": text} for text in texts[::3]]
    path.write_text(yaml.safe_dump({**size, "prompt": [*texts, *regions], "negative_prompt": texts[16]}))
    assert main(["generate", "--config", str(path), "--out", f"{tmp_path}/"]) == 0
    assert [asked["prompt"] for asked in painted] == [*texts, *regions]
    path.write_text(yaml.safe_dump({**size, "prompt": texts[16]}))
    assert main(["generate", "--config", str(path), "--out", f"{tmp_path}/"]) == 0
    assert painted[-1]["prompt"] == texts[16]
    assert canaries.take() == []


@pytest.mark.parametrize("field", [field for field in JOBS if "." not in field or field.startswith("prompt")])
def test_a_configuration_imports_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canaries: Canaries, painted: list[Any], texts: list[str], field: str
) -> None:
    """All ways to write it as JSON, which is YAML too; where a list of prompts is taken, all are checked."""
    template = {key: value for key, value in FIELDS[field].items() if key not in VERSIONS}
    for raw in spelled(field, texts[-3:]):
        if not names_a_plugin(field, raw) and not (field == "prompt" and raw == json.dumps([CLASS, PLUGIN])):
            (tmp_path / "a.yaml").write_text(filled(template, raw))
            assert main(["generate", "--config", str(tmp_path / "a.yaml"), "--out", f"{tmp_path}/"]) == 2, raw
            assert canaries.take() == [], raw
            assert one_line(capsys.readouterr().err), raw
    assert not painted


OPTIONS = ("prompt", "negative_prompt", "seed", "wrap", "scheduler", "fuser", "guidances", "guidances+")
SETTINGS = ("fuser.spread", "scheduler.options", "scheduler.options.eta", "guidances.metric", "guidances.levels")


@pytest.mark.parametrize("option", [*OPTIONS, *SETTINGS])
def test_an_option_imports_nothing_but_a_plugin_by_its_name(
    tmp_path: Path, canaries: Canaries, painted: list[Any], texts: list[str], option: str
) -> None:
    """Text is a prompt as it is, unless it begins as a mapping or a list does; what is no YAML is text, too."""
    words = ["--model", "tiny", "--height", "16", "--width", "24", "--steps", "2", "--out", f"{tmp_path}/"]
    words += ["a lake"] if option != "prompt" else []
    words += [f"--guidances+={'msd' if 'levels' in option else 'syncdiffusion'}"] if option.startswith("guidances.") else []
    for text in [*texts, *STRUCTURES][:: 1 if option == "prompt" else 3]:
        if PLUGIN in text and option not in ("prompt", "negative_prompt"):
            continue
        status = main(["generate", *words, f"--{option}={text}"])
        assert canaries.take() == [], text
        assert status == (0 if painted else 2), text
        if "prompt" in option and (option != "prompt" or not text.startswith(("{", "["))):
            assert [asked[option] for asked in painted] == [text]
        else:
            assert all(asked["prompt"] in (text, CLASS, PLUGIN) for asked in painted)
        painted.clear()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        *((option, f"there is no option --{option}") for option in ("prompt.class_path", "prompt+", "prompt.boxes", "fuser+")),
        ("fuser.a-b", "multidiffusion has no setting 'a_b'"),
        ("guidances.0-1", "there is no '0_1' to set"),
    ],
)
def test_no_part_of_an_option_is_read_as_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canaries: Canaries, painted: list[Any], option: str, message: str
) -> None:
    for text in (CLASS, f"{{class_path: {CLASS}}}", f"[{{class_path: {CLASS}}}]"):
        words = ["generate", "a lake", "--model", "tiny", f"--{option}={text}", "--out", f"{tmp_path}/"]
        assert main(words) == 2
        assert canaries.take() == []
        assert message in capsys.readouterr().err
        assert not painted


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", *PARTS])
def test_a_batch_imports_nothing(canaries: Canaries, painted: list[Any], texts: list[str], name: str) -> None:
    worker = Worker({"accelerator": "cpu", "model": "tiny", "height": 32, "width": 32, "steps": 2})
    strange = [json.loads(raw) for raw in spelled(name, texts) if not names_a_plugin(name, raw)]
    made = worker({"prompt": ["a lake"] * len(strange), name: strange})
    assert canaries.take() == []
    assert all(made["error"])
    assert not painted


STUDY: dict[str, Any] = {
    "prompts": ["a lake"],
    "methods": {"one": {"guidances": ["msd"]}},
    "features": {},
    "scores": {},
    "wholes": [],
}


@pytest.mark.parametrize(
    "name", ["prompts", "methods", "model", "steps", "features", "scores", "wholes", "sweep", "class_path"]
)
def test_a_study_imports_nothing(canaries: Canaries, name: str) -> None:
    for raw in STRUCTURES:
        for value in (json.loads(raw), [json.loads(raw)], {"one": json.loads(raw)}, raw):
            with suppress(PanokitError):  # some are sound: a method's settings, a prompt that is text
                Study.of({**STUDY, name: value})
            assert canaries.take() == [], raw


def test_a_sampler_makes_no_class_of_what_is_no_plugins_name(canaries: Canaries) -> None:
    for raw in STRUCTURES:
        for name in PARTS:
            if not names_a_plugin(name, raw):
                with pytest.raises(PanokitError):
                    Sampler("tiny", runtime=Runtime(accelerator="cpu"), **{name: json.loads(raw)})
                assert canaries.take() == [], raw
