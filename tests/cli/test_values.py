"""What the options of all commands take, and what they say of values that they do not take."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml

from panokit.cli import main, program
from panokit.cli.help import EXAMPLES, WIDTH, options_of
from panokit.cli.values import FILES, read
from panokit.cli.words import sort
from panokit.errors import SettingError
from panokit.hints import alternatives

ODD = (
    *("", " ", "z", "1e2", "1.5", "-1", "null", "~", "# x", "nan", "inf", "true", "yes", "0x10", "1,2", "2020-01-01", "=", "%"),
    *("[1]", "[]", "{}", "{a: 1}", "a: b", "- a", "'", "*a", "&a", "!!python/object:os.system x", "café", "\x00", "9" * 30),
)
"""Values of every kind that YAML knows, and of none."""

LEAKS = re.compile(r"<class|typing|Literal\[|Union|NoneType|Expected|Parser|validate|Traceback|unexpected|object at 0x")
"""Words of libraries, and of Python."""


def wrong_words(command: str, name: str, value: str) -> list[str]:
    """A command line with one odd value, which makes no picture."""
    if command == "generate":
        return [command, "a lake", f"--{name}={value}", "--print_config"]
    needed = [] if command == "plugins" else ["--config=none.yaml"] if command == "evaluate" else ["none.png"]
    return [command, *needed, f"--{name}={value}"]


def every_option() -> Iterator[tuple[str, str]]:
    for command in ("generate", "rerun", "evaluate", "plugins", "check"):
        for name in program._hints(command):
            yield command, name


@pytest.mark.parametrize(("command", "name"), [*every_option()])
def test_every_value_of_every_option_is_taken_or_refused_in_a_line_of_ours(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sweeps: bool
) -> None:
    """Sweeps try all values; otherwise each option gets another quarter of them."""
    monkeypatch.chdir(tmp_path)
    for value in ODD if sweeps else ODD[len(name) % 4 :: 4]:
        status = main(wrong_words(command, name, value))
        error = capsys.readouterr().err
        assert status in (0, 2), value
        if status == 2:
            assert error.startswith("panokit: "), value
            assert error.count("\n") == 1, value
            assert not LEAKS.search(error), (value, error)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("command", "name"), [(one, name) for one in ("view", "studio") for name in program._hints(one)])
def test_commands_that_would_open_something_read_their_options_in_the_same_way(command: str, name: str) -> None:
    hints, refusals = program._hints(command), list[str]()
    for value in ODD:
        words = sort([command, f"--{name}={value}", *["a.png"] * (command == "view")], hints, ["no_open"])
        try:
            program._arguments(command, words, hints)
        except SettingError as error:
            refusals.append(str(error))
    assert refusals
    assert not [refusal for refusal in refusals if LEAKS.search(refusal) or "\n" in refusal]


@pytest.mark.parametrize("name", [name for name in FILES if name in program._hints("generate")])
@pytest.mark.parametrize("value", ["null", "# x", "1e2", "true", "[a]", "~x"])
def test_a_name_of_a_file_stays_as_it_is(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = ["--image=a.png"] if name == "mask" else []
    assert main(["generate", "a lake", *image, f"--{name}={value}", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[name] == value


def test_the_home_folder_stands_for_a_tilde(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sheet: ~/sheet.png\n")
    words = ["generate", "a lake", "--out=~/x.png", "--model=~/model", "--config", str(tmp_path / "a.yaml"), "--print_config"]
    assert main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    home = os.path.expanduser("~")
    assert (shown["out"], shown["sheet"], shown["model"]) == (f"{home}/x.png", f"{home}/sheet.png", f"{home}/model")


def test_hyphens_may_stand_for_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a lake", "--guidance-scale", "3", "--negative-prompt=no-people", "--print-config", "--channels-last"]
    words += ["--guidances+=msd", "--guidances.head-start=0.5"]
    assert main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["guidance_scale"], shown["negative_prompt"], shown["channels_last"]) == (3.0, "no-people", True)
    assert shown["guidances"][0]["head_start"] == 0.5


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int | None, "3", 3),
        (float | None, "1e-3", 1e-3),
        (bool, "yes", True),
        (int | str, "1..8", "1..8"),
        (int | str, "7", 7),
        (str | tuple[int, int] | None, "[3, 4]", (3, 4)),
        (str | tuple[int, int] | None, "3,4", "3,4"),
    ],
)
def test_a_text_is_read_as_the_type_that_is_asked_for(hint: Any, text: str, value: object) -> None:
    assert read("x", text, hint) == value


def test_null_is_no_number() -> None:
    """`--steps null` would be `--steps` left out, which nobody writes."""
    with pytest.raises(SettingError, match="steps came as 'null': it must be a whole number"):
        read("steps", "null", int | None)


def test_the_help_says_the_meaning_the_default_and_an_example_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in program._COMMANDS:
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= WIDTH
        text = " ".join(shown.split())
        options = program.parser(command)._actions
        for option in options:
            assert option.help, option.dest
            if option.option_strings and option.dest != "help":
                assert "default" in option.help, (command, option.dest)
                assert option.nargs == 0 or f"example: --{option.dest}" in option.help, (command, option.dest)
        assert all(word not in text for word in ("Union[", "null", "None"))


def test_the_examples_of_the_help_are_taken() -> None:
    groups = [*program._GROUPS, *(function for name, function in program._COMMANDS.items() if name != "generate")]
    for option in (option for group in groups for option in options_of(group) if option.name in EXAMPLES):
        if not option.is_switch and get_origin(option.hint) is not list and option.name != "prompt":
            value = read(option.name, EXAMPLES[option.name], option.hint)
            assert value == EXAMPLES[option.name] or type(value) in alternatives(option.hint)
