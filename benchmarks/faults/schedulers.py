"""Every installed scheduler in every setting: `python benchmarks/faults/schedulers.py [NAME ...]`.

Each name is run with each of its options, in exact worlds, for models of each kind of prediction and for 1 to 1000 steps. The
rule: a canvas has the noise that its level says, and the network is told that level; or the setting is refused in one line
before anything runs. A run begins near pure noise, and each of its steps moves the canvas.

The table has a line for each name and setting: how many runs ran, were refused, and broke the rule; in how many of them a
warning said that an option changes nothing; the largest difference to the noise of a level; and the first breach, or else the
first refusal. The exit status is 1 if a run broke the rule. All of it takes about half an hour on one core.
"""

import argparse
import sys
from collections import Counter

from panokit.testing.matrix import attempt, names, runs_of, settings_of

COLUMNS = "name", "setting", "ran", "refused", "broken", "idle", "worst", "the first breach or refusal"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="schedulers; all that are installed by default")
    total = Counter[str]()
    print(line(*COLUMNS), line(*["---"] * len(COLUMNS)), sep="\n")
    for name in parser.parse_args().names or names():
        for settings in settings_of(name):
            counts, worst, breaches, refusals = Counter[str](), 0.0, [], []
            for kind, training, steps in runs_of(name, settings):
                outcome = attempt(name, settings, training, steps, kind)
                counts.update(["broken" if outcome.broken else "refused" if outcome.refusal else "ran"])
                counts.update(["idle"] * bool(outcome.idle))
                worst = max(worst, outcome.worst)
                what = f"{kind}, {steps} steps: {outcome.broken or outcome.refusal}"
                (breaches if outcome.broken else refusals if outcome.refusal else []).append(what)
            total += counts
            options = ", ".join(f"{key}={value}" for key, value in settings.get("options", settings).items())
            numbers = [str(counts[key]) for key in ("ran", "refused", "broken", "idle")]
            print(line(name, options or "none", *numbers, f"{worst:.1e}", *[*breaches, *refusals, ""][:1]), flush=True)
    print(f"\n{total['ran']} ran, {total['refused']} were refused, {total['broken']} broke the rule.")
    return int(total["broken"] > 0)


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
