#!/usr/bin/env bash
# Compares the contract with the commit before this work: the fork point from main or, on main itself, the last commit.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "buf breaking: skipped, $1"; exit 0; }
bin=${VENV_BIN:-.venv/bin}
git rev-parse --git-dir >/dev/null 2>&1 || skip "this is not a git checkout"
head=$(git rev-parse --verify --quiet HEAD) || skip "there is no commit yet"
base=""
for main in origin/main main; do
  if git rev-parse --verify --quiet "$main^{commit}" >/dev/null; then
    base=$(git merge-base "$main" HEAD 2>/dev/null || true)
    break
  fi
done
if [ -z "$base" ] || [ "$base" = "$head" ]; then
  base=$(git rev-parse --verify --quiet HEAD~1) || skip "there is no earlier commit here (first or shallow clone)"
fi
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$base" proto 2>/dev/null | tar -x -C "$before" 2>/dev/null || skip "commit ${base:0:12} has no proto/"
"$bin/buf" breaking proto --against "$before/proto"
