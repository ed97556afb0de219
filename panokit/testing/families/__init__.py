"""The families of text-to-image models in miniature: diffusers' own pipelines, a few layers, random weights, and no downloads.

```python
from panokit.testing.families import tiny_pipeline

pipeline = tiny_pipeline("sdxl")
picture = pipeline("a lake", height=32, width=32, num_inference_steps=2).images[0]
```

`FAMILIES` names them all. `tiny_controlnet` adds a ControlNet to some, and `save_tiny_lora`, `save_tiny_ip_adapter` and
`save_tiny_embedding` write what changes a model.
"""

from panokit.testing.families.adapters import save_tiny_embedding, save_tiny_ip_adapter, save_tiny_lora
from panokit.testing.families.controlnets import CONTROLNETS, tiny_controlnet
from panokit.testing.families.pipelines import FAMILIES, tiny_pipeline

__all__ = [
    "CONTROLNETS",
    "FAMILIES",
    "save_tiny_embedding",
    "save_tiny_ip_adapter",
    "save_tiny_lora",
    "tiny_controlnet",
    "tiny_pipeline",
]
