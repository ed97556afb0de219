"""The conformance kit that plugin authors run, and the exact toy worlds that it and panokit's own tests are made of.

```python
from panokit.testing import conforms


@conforms(lambda: MyGuidance(weight=2.0))
def test_conformance(check):
    check()
```

The kind of the plugin decides which checks there are: a guidance's, a fuser's, a scheduler's or a denoiser's. They need no
weights, no GPU and well under a second. `panokit check my_package:MyGuidance` runs them without pytest.
"""

from panokit.testing.conformance import Check, Outcome, checks, conforms, run_checks
from panokit.testing.demands import ConformanceError

__all__ = ["Check", "ConformanceError", "Outcome", "checks", "conforms", "run_checks"]
