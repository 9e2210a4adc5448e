#!/usr/bin/env bash
# Validate a model against AMBER14 forces, on an entry of the PDB and on a data set.
#
#   examples/validate_against_amber.sh model.pt examples/demo/mirror/1crn.pdb.gz runs/pdb_thermal/dataset.h5 runs/judged
set -euo pipefail

if [ $# -lt 4 ]; then
  cat >&2 <<USAGE
usage: $0 MODEL ENTRY DATASET OUTPUT [OPTION ...]

  MODEL    model.pt, or a checkpoint (best.pt) of forcefield-ml train
  ENTRY    PDB or mmCIF file, gzipped or not
  DATASET  dataset.h5 of data-pipeline
  OUTPUT   folder for the two reports
  OPTION   for the entry, such as --frames 8, or --steps 2000 to simulate it, too
USAGE
  exit 2
fi
model=$1 entry=$2 dataset=$3 output=$4
shift 4

# the environment that make creates, unless another one is active
command -v forcefield-ml >/dev/null || PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

# The entry is repaired, put into water, sampled at 300 K and labelled with AMBER14 on the spot: minutes for a small
# protein. See in the report's card whether the model was trained on it or on a relative.
forcefield-ml validate "$model" "$entry" -o "$output/entry" "$@"

# The test split: proteins in no cluster of sequences that the model was trained on, if it was trained on this data set.
forcefield-ml validate "$model" "$dataset" -o "$output/dataset" --split test
