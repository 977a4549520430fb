"""The least that a step takes on a chip, by what it computes, what it moves to and from memory, and what it sends."""

import dataclasses

from jaxft.checks import pick
from jaxft.training.planning.plan import Plan


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip can do at most.

  Attributes:
    flops: dense bfloat16 operations a second.
    memory: bytes.
    bandwidth: bytes a second between them.
    interconnect: bytes a second that it sends over all its links within a slice.
    network: bytes a second that it sends to other slices, as its part of its host's network.
    sides: of the torus that its slices are.
  """

  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  network: float
  sides: int


# Data sheets of the vendor as of 2025; what is reached is less.
CHIPS = {
    "v5e": Chip(197e12, 16e9, 0.82e12, 200e9, 3.1e9, 2),
    "v5p": Chip(459e12, 95e9, 2.77e12, 600e9, 6.2e9, 3),
    "v6e": Chip(918e12, 32e9, 1.64e12, 448e9, 12.5e9, 2),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step on one chip, each as if the others took no time.

  Attributes:
    compute: all operations, loops multiplied out, at the peak.
    memory: what a step reads and writes at the least, its arguments and its outputs once; activations come on top.
    interconnect: what it sends within its slice, at the speed of all links together.
    network: what it sends to other slices, by collectives along `dcn`.
    fits: whether the compiler's peak of memory is below the chip's.
  """

  compute: float
  memory: float
  interconnect: float
  network: float
  fits: bool

  @property
  def bound(self) -> str:
    """Which of them takes longest."""
    return max(("compute", "memory", "interconnect", "network"), key=lambda name: getattr(self, name))

  @property
  def least(self) -> float:
    """Seconds of a step at the least, all four going on at once."""
    return getattr(self, self.bound)

  def __str__(self) -> str:
    ms = lambda seconds: f"{1000 * seconds:,.1f} ms"
    network = f" and {ms(self.network)} to other slices" if self.network else ""
    return (f"at least     {ms(self.compute)} computing, {ms(self.memory)} of memory traffic, {ms(self.interconnect)} "
            f"sending{network}: bound by {self.bound}; {'fits' if self.fits else 'DOES NOT FIT'} the chip's memory")


def roofline(plan: Plan, chip: str) -> Roofline:
  """The roofline of a compiled plan on a kind of chip.

  Args:
    plan: made with `compile=True`.
    chip: v5e, v5p or v6e.

  Raises:
    ValueError: the chip is none of these, or the plan is not compiled.
  """
  limits = pick("chip", chip, CHIPS)
  if plan.compiled is None:
    raise ValueError("plan must be compiled; got one made with compile=False")
  compiled = plan.compiled
  across = lambda c: "dcn" in c.axes.split("+")
  return Roofline(
      compute=plan.flops.total / plan.devices / limits.flops,
      memory=(compiled.arguments + compiled.outputs) / limits.bandwidth,
      interconnect=sum(c.bytes for c in compiled.collectives if not across(c)) / limits.interconnect,
      network=sum(c.bytes for c in compiled.collectives if across(c)) / limits.network,
      fits=compiled.peak <= limits.memory)
