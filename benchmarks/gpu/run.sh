#!/usr/bin/env bash
# Checks panokit on one GPU and measures its speed, in ten minutes at most and without a network; docs/gpu.md says how.
#   benchmarks/gpu/run.sh                          # on a CUDA device
#   benchmarks/gpu/run.sh --device cpu --tiny      # in miniature, anywhere
# Where there is no git, PANOKIT_COMMIT says which version it is.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
python="${PYTHON:-$(command -v python || command -v python3)}"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1     # nothing is fetched
export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}" # without it, cuBLAS may add in another order at each run
exec "$python" -m gpu "$@"
