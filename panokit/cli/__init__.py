"""The command line: `panokit generate`, `rerun`, `evaluate`, `plugins` and `check`."""

from panokit.cli.program import main

__all__ = ["main"]
