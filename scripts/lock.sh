#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.txt: hashed, without registry names, one file for every
# supported Python (each gets the newest JAX that it can run).
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
lock() {
  out=$1; shift
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url "$@" pyproject.toml requirements/build.in -o "requirements/$out.txt"
}
lock core --extra report --extra track --extra hf
lock dev --extra report --extra track --extra hf --extra dev
for extra in cuda12 tpu plan; do lock "$extra" --extra report --extra track --extra hf --extra "$extra"; done
