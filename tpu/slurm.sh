#!/usr/bin/env bash
# A run on a SLURM cluster of GPUs: one process a GPU, which find each other by SLURM's own variables.
#   slurm.sh [--dry-run] --nodes 4 --gpus 8 [--time 24:00:00] [--name jaxft] [--partition P] [--account A] [--venv FOLDER]
#            -- finetune --model ... --out /shared/runs/n
# Two minutes before its time is up the run is told to save a step, ends with 75, and the job is put into the queue again.
# SIGTERM, by preemption or scancel, has it save a step too; a preempted job or one whose node failed SLURM itself puts
# back (--requeue), and one that was cancelled stays away. --out and the data must lie on the shared file system.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

nodes=1 gpus=8 time=24:00:00 name=jaxft partition='' account='' venv="$HOME/jaxft-venv"
take_options "nodes gpus time name partition account venv" "" "$@"
need_whole 1 nodes gpus
need_form name '[A-Za-z0-9._-]+' "letters, digits, '.', '_' and '-'"
need_form time '([0-9]+-)?[0-9]+(:[0-9]+){0,2}|UNLIMITED' 'as 30 (minutes), 24:00:00 or 2-12:00:00'
need_form partition '[^[:space:]]+' 'without blanks'
need_form account '[^[:space:]]+' 'without blanks'
need_options name time
need_jaxft_command
need_tool sbatch 'this runs where jobs are submitted'

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
#SBATCH --signal=B:USR1@120
HEAD
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  printf 'command=('; printf '%q ' "$venv/bin/jaxft" "${command[@]}"; echo ')'
  cat <<'BODY'
# A kill of all tasks at the first that ends would cut the last save of the others short; they end by themselves.
srun --kill-on-bad-exit=0 "${command[@]}" &
step=$! ended=''
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
trap 'ended=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
wait "$step"; status=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
if [ -z "$ended" ] && { [ "$status" -eq 75 ] || { [ "$status" -gt 128 ] && [ "$status" -ne 130 ]; }; }; then
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
