"""Programs that a model wrote: run in a process of their own, without a network, within limits."""

from jaxft.evaluation.programs.sandbox import Limits, Outcome, run_program
from jaxft.evaluation.programs.syntax import check_syntax
