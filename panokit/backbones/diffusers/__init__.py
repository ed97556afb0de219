"""Models and schedulers of diffusers: the only part of the core that imports it."""
