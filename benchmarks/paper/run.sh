#!/bin/sh
# The MSD paper's experiment, all of it: Fig. 4 (methods), 5 (weight) and 6 (stop timestep), and what it leaves open (head
# start, recipes, levels, how windows end), quality against windows, the other methods, and prompts that nothing was chosen with.
# Resumes where it was stopped. On landscapes: about five hours on two cores.
#   OUT=results benchmarks/paper/run.sh --devices 2
set -eu
out="${OUT:-results}"
cd "$(dirname "$0")/../.."
study() { # NAME CONFIG OPTIONS: with the references of the first
  name="$1"; config="$2"; shift 2
  panokit evaluate --config "$config" --out "$out/$name" "$@"
}
study methods configs/paper_landscapes.yaml "$@"
set -- "$@" --reference_folder "$out/methods/references"
study start configs/paper_landscapes.yaml --panoramas 2 --sweep guidances.head_start=0,0.1,0.2,0.3,0.4,0.5,0.7 "$@"
study weight benchmarks/paper/guidance.yaml --sweep guidances.weight=0,1,3,6,10,20,100,1000 "$@"
study until benchmarks/paper/guidance.yaml --sweep guidances.until=0,0.05,0.1,0.15,0.25,0.5,1 "$@"
study recipes benchmarks/paper/recipes.yaml "$@"
study levels benchmarks/paper/levels.yaml "$@"
study fusers benchmarks/paper/fusers.yaml "$@"
study strips benchmarks/paper/strips.yaml "$@"
study frontier benchmarks/paper/frontier.yaml "$@"
study family benchmarks/paper/family.yaml "$@"
panokit evaluate --config configs/held_out_landscapes.yaml --out "$out/held_out"
