"""`jaxft run`: an experiment by its slug."""

from collections.abc import Callable

_USAGE = "usage: jaxft run EXPERIMENT [--smoke] [--out FILE] [--package PACKAGE] [overrides of its config]"


def main(args: list[str], enter: Callable[[], None]) -> None:
  from jaxft.studies import experiment

  package, args = _package(args)
  if not args or args[0] in ("-h", "--help"):
    slugs = [f"  {slug}  {e.title}" for slug, e in experiment.discover(package).items()] or ["  (none)"]
    print("\n".join([_USAGE, "", *slugs, "", "`jaxft run EXPERIMENT --help` shows its config."]))
    raise SystemExit(0 if args else 2)
  enter()  # before the study's module, which may compute as it is imported
  experiment.main(experiment.find(args[0], package), args[1:], package)


def _package(args: list[str]) -> tuple[str, list[str]]:
  """The package whose modules define the experiments, and the other arguments."""
  if "--package" not in args:
    return "experiments", args
  at = args.index("--package")
  if at + 1 == len(args):
    raise ValueError("--package takes the name of a package")
  return args[at + 1], args[:at] + args[at + 2:]
