"""`jaxft completion`: what a shell needs to complete commands and their options."""

import dataclasses
import importlib
from typing import Annotated

import tyro

from jaxft.command_line import names, parse

SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True)
class Completion:
  """Prints a completion script: eval "$(jaxft completion bash)", or for fish: jaxft completion fish | source."""

  shell: Annotated[str, tyro.conf.Positional] = "bash"
  """bash, zsh or fish."""


def main(args: list[str]) -> None:
  options = parse(Completion, args, prog="jaxft completion")
  from jaxft.checks import one_of

  one_of("shell", options.shell, SHELLS)
  print(script(options.shell, known()))


def known() -> dict[str, list[str]]:
  """The options of each command, without dashes."""
  from jaxft.cli import COMMANDS
  from jaxft.cli.plan import PlanOptions
  from jaxft.recipes.options import Finetune

  flat = {"config": (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)}
  out = {}
  for command, (module, _) in COMMANDS.items():
    if command == "run":  # each experiment has options of its own
      out[command] = ["smoke", "out", "package"]
      continue
    kinds = {"finetune": Finetune, "plan": PlanOptions}
    own = [kind for kind in vars(importlib.import_module(module)).values()
           if dataclasses.is_dataclass(kind) and getattr(kind, "__module__", "") == module]
    kind: type = kinds.get(command) or own[0]  # pyright: ignore[reportAssignmentType]: they are classes
    out[command] = names(kind, prog=command, **(flat if command in kinds else {}))
  return out


def script(shell: str, options: dict[str, list[str]]) -> str:
  """The script of a shell: commands first, then the options of the command, and files."""
  commands = " ".join(options)
  if shell == "fish":
    lines = [f"complete -c jaxft -n __fish_use_subcommand -a '{commands}'"]
    lines += [f"complete -c jaxft -n '__fish_seen_subcommand_from {command}' -l {name}"
              for command, known in options.items() for name in known]
    return "\n".join(lines)
  cases = "\n".join(f"    {command}) words='{' '.join(f'--{name}' for name in known)}' ;;"
                    for command, known in options.items())
  bash = f"""_jaxft() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words='' ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words='{commands}'
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _jaxft jaxft"""
  return bash if shell == "bash" else f"autoload -U bashcompinit && bashcompinit\n{bash}"
