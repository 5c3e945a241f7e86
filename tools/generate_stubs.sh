#!/usr/bin/env bash
# Regenerates the committed stubs of the contract. The generator is pinned low (pyproject.toml, extra dev): generated
# code refuses a protobuf runtime older than its generator.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV_BIN:-.venv/bin}
out=${1:-.}
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I proto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  proto/tutelage/v1/*.proto
