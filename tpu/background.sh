#!/usr/bin/env bash
# Runs a command that outlives the connection it was started over, and follows it: its log to standard output until it
# ends, then its exit status. Where it is running already, that one is followed; what follows may end at any time.
#   background.sh [--dry-run] --name N -- COMMAND...
#   background.sh --name N --running     is it? (exit status 0 or 1)
# Its log, process id and exit status are N.log, N.pid and N.status in the home folder.
set -uo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

name='' running=''
take_options name running "$@"
need_options name
need_label name 63
log="$HOME/$name.log" pid="$HOME/$name.pid" ended="$HOME/$name.status"

# A number that another process has by now is told apart by the name in its command line.
is_running() { [ -s "$pid" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$pid")/cmdline" | grep -q "$ended"; }

if [ -n "$running" ]; then is_running; exit; fi
need_command "the command"
if [ -n "$dry" ]; then show "${command[@]}"; exit 0; fi
if is_running; then
  echo "background.sh: it is running already, process $(cat "$pid")"
  from=-50
else
  rm -f "$ended"
  touch "$log"
  from=+$(($(wc -l <"$log") + 1))
  # shellcheck disable=SC2016
  setsid nohup bash -c '"${@:2}"; echo $? >"$1.new"; mv "$1.new" "$1"' background.sh "$ended" "${command[@]}" \
    </dev/null >>"$log" 2>&1 &
  echo $! >"$pid"
fi
tail --lines="$from" --follow --pid="$(cat "$pid")" "$log"
[ -s "$ended" ] || { echo "background.sh: it ended without an exit status: the machine ended it" >&2; exit 75; }
exit "$(cat "$ended")"
