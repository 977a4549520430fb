"""The command `jaxft`: one module per command, imported only when it is asked for."""

import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence

from jaxft.processes import RESTART
from jaxft.roll_call import ProcessLost

# command -> (its module, what it does); a module has `main(args: list[str]) -> None`, and takes as second argument, of
# the commands in SPREAD, what it calls before its work.
COMMANDS = {
    "finetune": ("jaxft.cli.finetune", "fine-tune a pretrained model on a data set; resumes where it was stopped"),
    "plan": ("jaxft.cli.plan", "what a finetune would train, hold and cost, before paying for it; same options"),
    "evaluate": ("jaxft.cli.evaluate", "a model on a task: classes, numbers, retrieval, sentiment, perplexity"),
    "generate": ("jaxft.cli.generate", "text from a decoder, for prompts or a chat"),
    "run": ("jaxft.cli.run", "an experiment: jaxft run EXPERIMENT [--smoke] [overrides of its config]"),
    "list": ("jaxft.cli.listing", "the experiments and their committed results"),
    "cite": ("jaxft.cli.cite", "BibTeX of the papers behind functions, a run's folder or an experiment"),
    "formats": ("jaxft.cli.formats", "what a file of records may hold, with an example each"),
    "fetch": ("jaxft.cli.fetch", "presets and data sets into the cache folder"),
    "merge": ("jaxft.cli.merge", "many checkpoints to one, as a mergekit configuration says; from disk to disk"),
    "completion": ("jaxft.cli.completion", "a script by which bash, zsh or fish completes commands and options"),
    "convert": ("jaxft.cli.convert", "between Hugging Face folder, GGUF file, adapter and a run's checkpoint"),
}

# Those that run as several processes, on one machine or many; see `jaxft.cli.processes`.
SPREAD = ("finetune", "run")

# What the library raises for input that it cannot take; anything else is a fault of its own. See `_is_input`.
USER_ERRORS = (ValueError, TypeError, OSError)

# Characters of an error's line; beyond them it may hold a whole file that somebody else wrote.
LONGEST = 2000

# Modules that `pip install jaxft` does not bring -> the extra that does.
EXTRAS = {
    "gguf": "gguf", "matplotlib": "experiments", "PIL": "experiments", "reasoning_gym": "reasoning",
    "rouge_score": "text-metrics", "sacrebleu": "text-metrics", "sklearn": "experiments", "tensorboardX": "tensorboard",
    "wandb": "wandb", "mlflow": "mlflow",
}


def main(args: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status.

  Errors are one line on standard error: status 2 for bad input, 1 for a fault of the library, 3 for a training
  that diverged, 75 for a run to be started again (it was stopped by SIGTERM with everything saved, or lost one of its
  processes), 130 for Ctrl-C.
  `--traceback` anywhere, or JAXFT_TRACEBACK=1, raises them instead.
  """
  args = list(sys.argv[1:] if args is None else args)
  trace = "--traceback" in args or os.environ.get("JAXFT_TRACEBACK") == "1"
  args = [a for a in args if a != "--traceback"]
  if not args or args[0] in ("-h", "--help"):
    print(usage())
    return 0 if args else 2
  if args[0] == "--version":
    print(f"jaxft {importlib.metadata.version('jaxft')}")
    return 0
  status, said, fault = _outcome(args[0], args[1:], trace)
  if args[0] in SPREAD:
    from jaxft import processes

    status, said = processes.finish(status, said, fault=fault)
  if said is not None:
    print(said, file=sys.stderr)
  return status


def _outcome(command: str, args: list[str], trace: bool) -> tuple[int, str | None, bool]:
  """Exit status, line for standard error, and whether an error ended the command, which others must be told."""
  try:
    _run(command, args)
    sys.stdout.flush()
  except SystemExit as e:
    status = _status(e)
    return status, None, status not in (0, RESTART)
  except KeyboardInterrupt as e:
    return 130, f"jaxft: interrupted{f'; {e}' if str(e) else ''}", True
  except BrokenPipeError:
    # The reader of a pipe has gone (`jaxft list | head`); without this Python complains once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141, None, True
  except Exception as e:
    if trace:
      traceback.print_exc()
    return RESTART if isinstance(e, ProcessLost) else 2 if _is_input(e) else 1, _line(e), True
  return 0, None, False


def usage() -> str:
  """The page that `jaxft --help` shows."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
  return (
      "usage: jaxft COMMAND [options]\n\nFine-tuning methods for JAX.\n\n" + "\n".join(lines) +
      "\n\n`jaxft COMMAND --help` shows every option and its default; --traceback shows where an error arose.\n"
      f"{' and '.join(SPREAD)} run as several processes too: --processes N on this machine, and see their --help."
  )


def _run(command: str, args: list[str]) -> None:
  if command not in COMMANDS:
    from jaxft.checks import nearest

    raise ValueError(f"unknown command {command!r}; {nearest(command, list(COMMANDS))}")
  main = importlib.import_module(COMMANDS[command][0]).main
  if command not in SPREAD:
    main(args)
    return
  from jaxft.cli import processes

  options, rest = processes.take(args)
  if "-h" in rest or "--help" in rest:
    print(processes.HELP + "\n")
  main(rest, lambda: processes.enter(options, [command, *rest]))


def _status(e: SystemExit) -> int:
  if e.code is None or isinstance(e.code, int):
    return e.code or 0
  print(e.code, file=sys.stderr)
  return 1


def _is_input(e: Exception) -> bool:
  # The library's own ImportErrors say which extra to install and name no module; Python's do.
  return isinstance(e, USER_ERRORS) or (isinstance(e, ImportError) and (e.name is None or _extra(e) is not None))


def _extra(e: Exception) -> str | None:
  """The extra that brings what an import lacked; None of other errors."""
  return EXTRAS.get((e.name or "").partition(".")[0]) if isinstance(e, ModuleNotFoundError) else None


def _line(e: Exception) -> str:
  text = " ".join(str(e).split()) or type(e).__name__
  if len(text) > LONGEST:
    text = f"{text[:LONGEST]} ... ({len(text) - LONGEST} more characters; --traceback shows all)"
  if (extra := _extra(e)) is not None:
    return f"jaxft: error: this needs the extra {extra} ({text}): pip install 'jaxft[{extra}]'"
  if _is_input(e):
    return f"jaxft: error: {text}"
  return f"jaxft: internal error: {type(e).__name__}: {text} (--traceback shows where)"
