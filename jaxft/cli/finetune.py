"""`jaxft finetune`: a pretrained model, a data set, a method and a loss, from one command to a tuned model."""

import sys
from collections.abc import Callable

from jaxft.recipes.options import Finetune, parse
from jaxft.recipes.run_file import expand

DIVERGED = 3  # exit status of a run that was stopped at a number that is not finite


def main(args: list[str], enter: Callable[[], None]) -> None:
  options = parse(expand(args), command="finetune", description=f"{Finetune.__doc__} Or: jaxft finetune RUN.yaml, "
                  "a file of these options; each run writes its own to run.yaml.")
  enter()
  from jaxft.compilation import use_compilation_cache
  from jaxft.recipes.finetune import finetune  # not before the options: --help needs no JAX
  from jaxft.training import Diverged

  use_compilation_cache()
  try:
    summary = finetune(options)
  except Diverged as e:
    print(f"jaxft: error: {e}. Try a lower --learning-rate, with --overwrite or another --out; "
          "--no-stop-if-not-finite goes on all the same", file=sys.stderr)
    raise SystemExit(DIVERGED) from e
  if summary is not None:  # the first process tells
    from jaxft.recipes.account.end import as_text

    print(as_text(summary))
