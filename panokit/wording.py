"""Words for numbers, in messages."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 picture`, `3 pictures`, `2 passes`."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def duration(seconds: float) -> str:
    """A time in the unit that people would use: `40 s`, `7 min`, `1.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
