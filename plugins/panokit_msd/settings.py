"""Checks of settings."""

from panokit import SettingError


def require_at_least(least: int | float, **settings: int | float | None) -> None:
    """Check that numbers are not below `least`. None is allowed, and means that the guidance decides.

    Raises:
        SettingError: a setting is smaller, or not a number.
    """
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise SettingError(f"{name} is {value}: it must be {least} or more")


def require_shares(**settings: int | float) -> None:
    """Check that numbers are shares of the steps.

    Raises:
        SettingError: a setting is not in [0, 1].
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise SettingError(f"{name} is {value}: it is a share of the steps, from 0 to 1")
