#!/usr/bin/env bash
# Runs one process of a run, and starts it again where a new start can help: at 75 (it was stopped with everything saved,
# or lost another process) and where a signal ended it, but for Ctrl-C (130). Any other status is the last.
#   supervise.sh [--dry-run] [--restarts 20] [--wait 15] -- COMMAND...
# All processes of a run end together, so that all of their supervisors start them again together.
set -uo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

restarts=20 wait=15
take_options "restarts wait" "" "$@"
need_whole 0 restarts wait
need_command "the command"
if [ -n "$dry" ]; then
  show "${command[@]}"
  printf '+ again at exit status 75 or above 128, at most %s times, after %s s\n' "$restarts" "$wait"
  exit 0
fi

child='' stopped='' passed_on=''
# SIGTERM is for the run: it saves a step. It comes when the machine is taken away, so there is no new start after it.
# It is passed on once: a second one would end the run before its save.
pass_on() { if [ -n "$child" ] && [ -z "$passed_on" ]; then passed_on=1; kill -TERM "$child" 2>/dev/null; fi; }
trap 'stopped=1; pass_on' TERM INT
for ((start = 0; ; start++)); do
  "${command[@]}" &
  child=$!
  [ -z "$stopped" ] || pass_on
  wait "$child"; status=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done  # a trap ends a wait
  child=''
  again=''
  if [ "$status" -eq 75 ] || { [ "$status" -gt 128 ] && [ "$status" -ne 130 ]; }; then again=1; fi
  if [ -n "$stopped" ] || [ -z "$again" ]; then exit "$status"; fi
  if [ "$start" -ge "$restarts" ]; then
    echo "supervise.sh: exit status $status after $restarts restarts; no more" >&2
    exit "$status"
  fi
  echo "supervise.sh: exit status $status; restart $((start + 1)) of $restarts in $wait s" >&2
  sleep "$wait" &
  wait $!
  [ -z "$stopped" ] || exit 75
done
