"""Checks and measurements on one GPU: `benchmarks/gpu/run.sh` runs them all, and docs/gpu.md says what they are."""
