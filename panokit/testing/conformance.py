"""Runs the checks of a plugin, under pytest with one decorator, or without pytest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from traceback import extract_tb
from typing import Any, NamedTuple, TypeVar, final

from panokit.denoiser import Denoiser
from panokit.errors import SettingError
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.layout import Layout
from panokit.scheduler import Scheduler
from panokit.testing import denoisers, fusers, guidances, layouts, schedulers
from panokit.testing.demands import ConformanceError

Plugin = Guidance | Layout | Fuser | Scheduler | Denoiser
Test = TypeVar("Test", bound=Callable[..., None])


@final
@dataclass(frozen=True)
class Check:
    """One rule for one plugin. Call it to check the rule.

    Attributes:
        function: checks the rule.
        make: makes a new plugin with the same settings. A rule may call it several times.
    """

    function: Callable[[Callable[[], Any]], None]
    make: Callable[[], Any]

    @property
    def name(self) -> str:
        """The name of the check in a report."""
        return self.function.__name__

    @property
    def rule(self) -> str:
        """The rule, in a sentence."""
        return (self.function.__doc__ or "").strip()

    def __call__(self) -> None:
        """Check the rule.

        Raises:
            ConformanceError: the plugin breaks the rule.
        """
        self.function(self.make)


class Outcome(NamedTuple):
    """The result of a check."""

    check: str
    problem: str
    """What is wrong and how to correct it; empty if the plugin keeps the rule."""


def checks(make: Callable[[], Plugin]) -> list[Check]:
    """List the checks that apply to a plugin.

    Args:
        make: makes a guidance, a layout, a fuser, a scheduler or a denoiser.

    Raises:
        SettingError: it makes something else.
    """
    plugin = make()
    match plugin:
        case Guidance():
            return [Check(function, make) for function in guidances.checks(plugin)]
        case Layout():
            return [Check(function, make) for function in layouts.checks(plugin)]
        case Fuser():
            return [Check(function, make) for function in fusers.checks(plugin)]
        case Scheduler():
            return [Check(function, make) for function in schedulers.checks(plugin)]
        case Denoiser():
            return [Check(function, make) for function in denoisers.checks(plugin)]
    raise SettingError(
        f"the factory made a {type(plugin).__name__}, which has no checks: it must make a Guidance, a Layout, a Fuser, "
        "a Scheduler or a Denoiser of panokit"
    )


def conforms(make: Callable[[], Plugin]) -> Callable[[Test], Test]:
    """A decorator for a test with an argument `check`. Pytest runs the test once for each check, under the check's name.

    ```python
    @conforms(lambda: MyGuidance(weight=2.0))
    def test_conformance(check):
        check()
    ```

    Args:
        make: makes the plugin with the settings to check. It is called many times, because some checks need new plugins.

    Raises:
        SettingError: it makes no plugin.
    """
    import pytest  # imported here, because `panokit check` does not need it

    return pytest.mark.parametrize("check", [pytest.param(check, id=check.name) for check in checks(make)])


def run_checks(make: Callable[[], Plugin]) -> Iterator[Outcome]:
    """Run the checks without pytest.

    Args:
        make: makes the plugin with the settings to check.

    Yields:
        The result of each check, as soon as it is known.

    Raises:
        SettingError: the factory makes no plugin.
    """
    for check in checks(make):
        yield Outcome(check.name, _problem(check))


def _problem(check: Check) -> str:
    try:
        check()
    except ConformanceError as failure:
        return str(failure)
    except Exception as failure:  # plugins raise errors of any type
        where = extract_tb(failure.__traceback__)[-1]
        return f"{type(failure).__name__}: {failure} ({where.filename}, line {where.lineno})"
    return ""
