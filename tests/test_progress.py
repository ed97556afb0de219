"""What is shown while a run goes on, and where."""

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from panokit.progress import steps_bar
from panokit.testing.toys import toy_run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: Any, **options: Any) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    run = toy_run(steps=3)
    with steps_bar(run, **{"shown": True, **options}) as advance:
        while not run.done:
            run.step()
            advance()
    return stream.getvalue()


def test_a_terminal_sees_steps_windows_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(monkeypatch, Terminal())
    assert "3/3" in text
    assert "24/24 windows" in text
    assert "GiB" in text


def test_a_notebook_sees_tqdms_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    text = shown(monkeypatch, io.StringIO())
    assert "denoising: 100%" in text
    assert "24/24 windows" in text


@pytest.mark.parametrize(("stream", "options"), [(io.StringIO(), {}), (Terminal(), {"shown": False})])
def test_nobody_else_sees_anything(monkeypatch: pytest.MonkeyPatch, stream: Any, options: dict[str, Any]) -> None:
    assert shown(monkeypatch, stream, **options) == ""
