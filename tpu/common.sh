#!/usr/bin/env bash
# What the launchers begin with: their options, and commands that a dry run shows in place of running them. It is sourced.

dry='' command=()

fail() { echo "${0##*/}: $*" >&2; exit 2; }

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

show() { printf '+'; printf ' %q' "$@"; echo; }
run() { show "$@"; [ -n "$dry" ] || "$@"; }
