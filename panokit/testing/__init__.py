"""The conformance kit, which checks that a plugin keeps its contract, and exact toy worlds for tests.

```python
from panokit.testing import conforms


@conforms(lambda: MyGuidance(weight=2.0))
def test_conformance(check):
    check()
```

There are checks for guidances, layouts, fusers, schedulers and denoisers. They need no weights and no GPU, and take about a
second.
`panokit check my_package:MyGuidance` runs them without pytest.
"""

from panokit.testing.conformance import Check, Outcome, checks, conforms, run_checks
from panokit.testing.demands import ConformanceError

__all__ = ["Check", "ConformanceError", "Outcome", "checks", "conforms", "run_checks"]
