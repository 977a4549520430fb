#!/usr/bin/env bash
# A run on a SLURM cluster of GPUs: one process a GPU, which find each other by SLURM's own variables.
#   slurm.sh [--dry-run] --nodes 4 --gpus 8 [--time 24:00:00] [--name jaxft] [--partition P] [--account A] [--venv FOLDER]
#            -- finetune --model ... --out /shared/runs/n
# Two minutes before its time is up, or when it is preempted, the job gets SIGTERM: the run saves a step, ends with 75, and
# the job is put into the queue again; so too where a node fails. --out and the data must lie on the shared file system.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

nodes=1 gpus=8 time=24:00:00 name=jaxft partition='' account='' venv="$HOME/jaxft-venv"
take_options "nodes gpus time name partition account venv" "" "$@"
need_command "the command of jaxft"

script() {
  cat <<HEAD
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --output=$name-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
HEAD
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  printf 'command=('; printf '%q ' "$venv/bin/jaxft" "${command[@]}"; echo ')'
  cat <<'BODY'
# A kill of all tasks at the first that ends would cut the last save of the others short; they end by themselves.
srun --kill-on-bad-exit=0 "${command[@]}" &
step=$!
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
wait "$step"; status=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
if [ "$status" -eq 75 ] || [ "$status" -gt 128 ]; then
  echo "exit status $status: into the queue again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
BODY
}

if [ -n "$dry" ]; then
  echo "+ sbatch, with"
  script
else
  script | sbatch
fi
