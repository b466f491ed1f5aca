#!/usr/bin/env bash
# A pin file drops the `pip:` packages of the environment: they are installed here. Where they are
# there already, nothing happens.
set -euo pipefail
python -m pip install --no-input infercnvpy==0.6.1
