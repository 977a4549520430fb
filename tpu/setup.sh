#!/usr/bin/env bash
# Sets up jaxft on this machine in a virtual environment, with the versions of constraints.txt.
#   setup.sh [--dry-run] [--accelerator tpu|cuda12|cpu] [--venv FOLDER] [--extras gguf,tensorboard]
set -euo pipefail

accelerator=tpu venv="$HOME/jaxft-venv" extras=gguf,tensorboard dry=''
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1; shift ;;
    --accelerator) accelerator="$2"; shift 2 ;;
    --venv) venv="$2"; shift 2 ;;
    --extras) extras="$2"; shift 2 ;;
    *) echo "setup.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
case "$accelerator" in
  tpu|cuda12) jax="jax[$accelerator]" ;;
  cpu) jax=jax ;;
  *) echo "setup.sh: --accelerator must be tpu, cuda12 or cpu; got $accelerator" >&2; exit 2 ;;
esac
root="$(cd "$(dirname "$0")/.." && pwd)"

run() { printf '+'; printf ' %q' "$@"; echo; [ -n "$dry" ] || "$@"; }

python=
for p in python3.12 python3.11 python3.13; do
  if command -v "$p" >/dev/null; then python="$p"; break; fi
done
if [ -z "$python" ]; then
  if [ -z "$dry" ]; then echo "setup.sh: jaxft needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 2; fi
  python=python3.12
fi
if [ -n "$dry" ] || [ ! -x "$venv/bin/python" ]; then run "$python" -m venv "$venv"; fi
# JAX with its accelerator in the same call, so that one solution holds for both; editable, as the studies lie beside
# the library and are no part of what is installed.
run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$jax" -e "${root}[$extras]"
run "$venv/bin/python" -m jaxft --version
