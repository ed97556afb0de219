"""The families of text-to-image models in miniature: diffusers' own pipelines, a few layers, random weights, and no downloads.

```python
from panokit.testing.families import FAMILIES, tiny_pipeline

pipeline = tiny_pipeline("sdxl")
picture = pipeline("a lake", height=32, width=32, num_inference_steps=2).images[0]
```
"""

from panokit.testing.families.pipelines import FAMILIES, tiny_pipeline

__all__ = ["FAMILIES", "tiny_pipeline"]
