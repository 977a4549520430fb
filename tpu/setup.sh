#!/usr/bin/env bash
# Sets up jaxft on this machine in a virtual environment, with the versions of constraints.txt.
#   setup.sh [--dry-run] [--accelerator tpu|cuda12|cpu] [--venv FOLDER] [--extras gguf,tensorboard]
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

accelerator=tpu venv="$HOME/jaxft-venv" extras=gguf,tensorboard
take_options "accelerator venv extras" "" "$@"
case "$accelerator" in
  tpu|cuda12) jax="jax[$accelerator]" ;;
  cpu) jax=jax ;;
  *) fail "--accelerator must be tpu, cuda12 or cpu; got $accelerator" ;;
esac
root="$(cd "$(dirname "$0")/.." && pwd)"

python=
for p in python3.12 python3.11 python3.13; do
  if command -v "$p" >/dev/null; then python="$p"; break; fi
done
if [ -z "$python" ]; then
  [ -n "$dry" ] || fail "jaxft needs Python 3.11, 3.12 or 3.13 on the PATH"
  python=python3.12
fi
if [ -n "$dry" ] || [ ! -x "$venv/bin/python" ]; then run "$python" -m venv "$venv"; fi
# JAX with its accelerator in the same call, so that one solution holds for both; editable, as the studies lie beside
# the library and are no part of what is installed.
run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$jax" -e "${root}[$extras]"
run "$venv/bin/python" -m jaxft --version
