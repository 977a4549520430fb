#!/usr/bin/env bash
# What the launchers begin with: their options, and commands that a dry run shows in place of running them. It is sourced.

dry='' command=()

# What stands after -- in a launcher; tests/tpu compares it with the program's own list.
commands='finetune plan evaluate generate run list cite formats fetch merge completion convert'

fail() { echo "${0##*/}: $*" >&2; exit 2; }

# The comment at the script's head.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0; }

# take_options VALUES SWITCHES ARGUMENT...: gives each option --name its variable, `dry` where there is --dry-run, and to
# the array `command` what stands after --. VALUES and SWITCHES are names, with spaces between them.
take_options() {
  local _values=" $1 " _switches=" $2 " _name  # no option has such a name: an option's variable is the script's
  shift 2
  while [ $# -gt 0 ]; do
    _name="${1#--}"
    case "$1" in
      --dry-run) dry=1; shift ;;
      --) shift; command=("$@"); return ;;
      --help|-h) usage ;;
      --?*)
        if [[ "$_switches" == *" $_name "* ]]; then
          printf -v "$_name" 1; shift
        elif [[ "$_values" == *" $_name "* ]]; then
          [ $# -gt 1 ] || fail "$1 needs a value"
          printf -v "$_name" %s "$2"; shift 2
        else
          fail "unknown option $1"
        fi ;;
      *) fail "unknown option $1; a command stands after --" ;;
    esac
  done
}

# need_options NAME...: ends the script where one of them has no value.
need_options() {
  local _name
  for _name in "$@"; do
    [ -n "${!_name}" ] || fail "${action:+$action }needs --$_name"
  done
}

need_command() { [ ${#command[@]} -gt 0 ] || fail "give $1 after --"; }

# A word that jaxft does not know would be found out by a slice that is paid for.
need_jaxft_command() {
  need_command "the command of jaxft"
  [[ " $commands " == *" ${command[0]} "* ]] || fail "the command after -- must be one of $commands; got '${command[0]}'"
}

# need_whole LEAST NAME...: each is a whole number of at least LEAST.
need_whole() {
  local _least="$1" _name
  shift
  for _name in "$@"; do
    [[ "${!_name}" =~ ^[0-9]{1,9}$ ]] && [ "$((10#${!_name}))" -ge "$_least" ] ||
      fail "--$_name must be a whole number of at least $_least; got '${!_name}'"
  done
}

# need_form NAME PATTERN WORDS: what --NAME holds, where it holds something, has the form that WORDS describe.
need_form() {
  [ -z "${!1}" ] || [[ "${!1}" =~ ^($2)$ ]] || fail "--$1 must be $3; got '${!1}'"
}

# need_label NAME MOST: a name as Google Cloud and Kubernetes take it.
need_label() {
  need_form "$1" "[a-z]([-a-z0-9]{0,$(($2 - 2))}[a-z0-9])?" \
    "small letters, digits and -, the first a letter, the last no -, at most $2 of them"
}

# need_tool NAME WHERE: it is installed; a dry run needs none.
need_tool() { [ -n "$dry" ] || command -v "$1" >/dev/null || fail "$1 is not on the PATH; $2"; }


show() { printf '+'; printf ' %q' "$@"; echo; }
run() { show "$@"; [ -n "$dry" ] || "$@"; }
