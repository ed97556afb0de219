"""What tests are made of: exact toy worlds, and Stable Diffusion in miniature."""
