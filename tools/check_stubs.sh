#!/usr/bin/env bash
# Regenerates the stubs into a temporary folder and compares: committed stubs that lag behind proto/ are an error.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
tools/generate_stubs.sh "$fresh"
diff -r --exclude=__pycache__ --exclude=__init__.py "$fresh/tutelage/v1" tutelage/v1 ||
  { echo "tutelage/v1 does not match proto/: run 'make stubs'" >&2; exit 1; }
