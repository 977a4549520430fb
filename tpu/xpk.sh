#!/usr/bin/env bash
# A run on GKE by XPK (pip install xpk), on a cluster that `xpk cluster create` has made, with an image of tpu/Dockerfile.
#   xpk.sh [--dry-run] --cluster C --name N --image I --type v5litepod-16 [--slices 2] [--zone Z] [--project P]
#          [--restarts 20] -- finetune --model ... --out /mnt/runs/n
# XPK mounts no bucket by itself: attach one to the cluster by `xpk storage attach` at /mnt, with --auto-mount true.
# `xpk workload list|delete` with the same cluster look at the run and end it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

cluster='' name='' image='' type='' slices=1 zone='' project='' restarts=20
take_options "cluster name image type slices zone project restarts" "" "$@"
need_options cluster name image type
need_label name 39
need_form image '[^[:space:]]+' 'without blanks'
need_form type '[a-z0-9]+(-[a-z0-9]+)*-[1-9][0-9]*' 'a type of TPU as v5litepod-16'
need_whole 1 slices
need_whole 0 restarts
need_jaxft_command
need_tool xpk 'pip install xpk'

flags=("--workload=$name" "--cluster=$cluster" "--docker-image=$image" "--tpu-type=$type" "--num-slices=$slices")
[ -z "$zone" ] || flags+=("--zone=$zone")
[ -z "$project" ] || flags+=("--project=$project")
# A run that was stopped with everything saved, or has lost a process, ends with 75. SIGTERM comes before a pod goes.
flags+=("--max-restarts=$restarts" --restart-on-exit-codes=75 --termination-grace-period-seconds=120)
run xpk workload create "${flags[@]}" "--command=$(printf '%q ' jaxft "${command[@]}")"
