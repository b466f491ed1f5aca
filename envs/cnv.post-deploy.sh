#!/usr/bin/env bash
# infercnvpy has no conda recipe, and pin files drop `pip:` packages. What it needs beyond the
# environment's own packages comes with it.
set -euo pipefail
python -m pip install --no-input infercnvpy==0.6.1 igraph==1.0.0 leidenalg==0.12.0
