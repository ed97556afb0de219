"""Models and schedulers of diffusers. No other part of the core imports diffusers."""
