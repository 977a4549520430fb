#!/usr/bin/env bash
# A run on a TPU VM slice: asks for it as a queued resource, sets up every worker, runs, and asks again when the slice is
# taken away.
#   vm.sh [--dry-run] launch --name N --zone Z --type v5litepod-16 -- finetune --model ... --out /mnt/runs/n
#   vm.sh [--dry-run] logs|stop|status|delete --name N --zone Z
# Options of launch:
#   --project P     project (gcloud's own where none is given)
#   --runtime R     TPU software version (by the type: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e)
#   --spot          cheaper, and taken away at any time
#   --bucket B      gs://B is mounted at /mnt on every worker (Cloud Storage FUSE): a place that all workers share
#   --share H:/P    an NFS share (Filestore), mounted there instead
#   --restarts N    slices to ask for again after one was taken away (20)
# Exit status: that of the run. The run outlives this script: `launch` again follows one that is still going.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

[ "${1:-}" = --dry-run ] && { dry=1; shift; }
action="${1:-}"
case "$action" in
  launch|logs|stop|status|delete) shift ;;
  --help|-h) usage ;;
  *) fail "the action must be launch, logs, stop, status or delete; got '$action'" ;;
esac
name='' zone='' type='' project='' runtime='' spot='' bucket='' share='' restarts=20
take_options "name zone type project runtime bucket share restarts" spot "$@"
need_options name zone
bucket="${bucket#gs://}"
need_label name 63
need_form zone '[a-z0-9-]+' 'as us-west4-a'
need_form project '[A-Za-z0-9.:-]+' "a project's id"
need_form bucket '[A-Za-z0-9._-]+' "a bucket's name, without a path"
need_form share '[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*' 'as HOST:/PATH'
need_form type '[a-z0-9]+(-[a-z0-9]+)*-[1-9][0-9]*' 'a type of TPU as v5litepod-16'
need_form runtime '[a-z0-9.-]+' 'as v2-alpha-tpuv5'
need_whole 0 restarts
[ -z "$bucket" ] || [ -z "$share" ] || fail "--bucket and --share are both mounted at /mnt: give one of them"
root="$(cd "$(dirname "$0")/.." && pwd)"
where=("--zone=$zone" --quiet)
[ -z "$project" ] || where+=("--project=$project")

need_tool gcloud 'https://cloud.google.com/sdk/docs/install'
background="\$HOME/jaxft/tpu/background.sh --name jaxft"

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all "--command=$1"; }

# The queued resource's state, NONE where there is none; where that cannot be known the script ends with gcloud's words.
state() {
  local said
  if said="$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>&1)"; then
    tail -n 1 <<<"$said"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "vm.sh: the state of $name cannot be read: $said" >&2
    return 1
  fi
}

# It may be a matter of the connection: asked again for about five minutes.
patient_state() {
  local tries=10
  until state; do
    [ $((tries -= 1)) -gt 0 ] || return 1
    sleep "${VM_SH_WAIT:-30}"
  done
}

create() {
  local flags=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  [ -z "$spot" ] || flags+=(--spot)
  tpus queued-resources create "$name" "${flags[@]}"
}

await_active() {
  if [ -n "$dry" ]; then
    show gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
    echo "+ again every 30 s until it is ACTIVE"
    return
  fi
  local now
  while now="$(patient_state)" || exit 1; [ "$now" != ACTIVE ]; do
    case "$now" in
      FAILED|SUSPENDED|NONE)
        echo "vm.sh: the queued resource is $now" >&2
        gcloud compute tpus queued-resources describe "$name" "${where[@]}" >&2 || true
        # Quota, type or zone: to ask again would fail again.
        [ "$now" != FAILED ] || { echo "vm.sh: see 'When it fails' in tpu/README.md; vm.sh delete removes it" >&2; exit 1; }
        return 1 ;;
    esac
    echo "vm.sh: $now" >&2
    sleep "${VM_SH_WAIT:-30}"
  done
}

delete() { tpus queued-resources delete "$name" --force; }

install() {
  run tar -czf "/tmp/jaxft-$name.tar.gz" -C "$root" --exclude=.git --exclude=.venv --exclude='experiments/results' .
  tpus tpu-vm scp "/tmp/jaxft-$name.tar.gz" "$name:/tmp/jaxft.tar.gz" --worker=all
  on_all 'mkdir -p ~/jaxft && tar -xzf /tmp/jaxft.tar.gz -C ~/jaxft && ~/jaxft/tpu/setup.sh --accelerator tpu'
  if [ -n "$bucket" ]; then
    on_all "sudo mkdir -p /mnt && command -v gcsfuse >/dev/null || { echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list && curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null && sudo apt-get update -q && sudo apt-get install -qy gcsfuse; }; mountpoint -q /mnt || sudo gcsfuse -o allow_other --implicit-dirs --rename-dir-limit 100000 --uid \$(id -u) --gid \$(id -g) $bucket /mnt"
  elif [ -n "$share" ]; then
    on_all "mountpoint -q /mnt || { sudo apt-get install -qy nfs-common && sudo mount -t nfs $share /mnt; }"
  fi
}

case "$action" in
  launch)
    need_options type
    need_jaxft_command
    if [ -z "$runtime" ]; then
      case "$type" in
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        *) fail "--runtime must be given for $type" ;;
      esac
    fi
    if [ -z "$bucket$share" ]; then
      echo "vm.sh: note: without --bucket or --share only one worker sees what another writes; a slice of several needs one" >&2
    fi
    line="$(printf ' %q' "${command[@]}")"
    # The run's own supervisor starts it again on a slice that lives; this loop asks for another when the slice is gone.
    for ((start = 0; ; start++)); do
      if [ -n "$dry" ]; then
        create
      else
        now="$(state)" || exit 1
        [ "$now" != NONE ] || create
      fi
      if await_active; then
        if [ -n "$dry" ] || ! on_all "$background --running"; then install; fi
        status=0
        on_all "$background -- \$HOME/jaxft/tpu/supervise.sh -- \$HOME/jaxft-venv/bin/jaxft$line" || status=$?
        [ -z "$dry" ] || { echo "+ at another state than ACTIVE afterwards: delete, create and run again, at most $restarts times"; exit 0; }
        [ "$status" -ne 0 ] || exit 0
        now="$(patient_state)" || exit 1
        if [ "$now" = ACTIVE ]; then exit "$status"; fi
      else
        status=75
      fi
      [ "$start" -lt "$restarts" ] || { echo "vm.sh: no more after $restarts restarts" >&2; exit "$status"; }
      now="$(patient_state)" || exit 1
      [ "$now" = NONE ] || delete
    done ;;
  logs) on_all 'tail -n 50 ~/jaxft.log' ;;
  stop) on_all 'pkill -TERM -f "^bash [^ ]*/jaxft/tpu/supervise.sh"' ;;  # the run saves a step and ends
  status) tpus queued-resources describe "$name" ;;
  delete) delete ;;
esac
