"""Each transform after each other, by shapes alone: whatever one leaves frozen, the next can take.

`split`, `join` and `materialize` are traced, over stacked and over unrolled layers, and nothing is compiled:
`test_composition.py` has the numbers of some pairs. A pair composes, or is refused for the reason that is given here.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from jaxft.leaves import materialize
from jaxft.transforms import ParamTransform, chain
from jaxft.tree import leaves_with_paths, map_with_path, unstack_layers
from jaxft.tree.paths import is_structured
from tests.transforms.composable import EVERY, KEY

ALL = "layers/**"
# Of one shape, so that what stands for one has the form of what stands for the other, and is traced once.
STACKED = {"layers": {name: {"kernel": jax.ShapeDtypeStruct((2, 16, 32), jnp.float32)} for name in ("up", "down")}}
LAYOUTS = {"stacked": STACKED, "unrolled": jax.eval_shape(unstack_layers, STACKED)}

# One for each thing that a transform leaves behind: an array, a Quantized, a note that is flat over a stack, one that
# has its layers, a matrix without some of its layers.
SOME = ("lora", "int8", "shira", "submatrix", "layers")
QUANTIZED = {"loftq", "int8", "nf4"}
DECOMPOSED = {"pissa", "olora", "corda", "lora_ga", "loftq"}  # take their factors out of the weight, which they change
WHOLE = {"full", "train", "freeze", "freeze_below", "layers", "half"}


def refusal(first: str, second: str, layout: str) -> str:
  """What the error must say that refuses a pair, '' where it composes."""
  if first == "full":
    return f"an earlier transform already trains all {len(jax.tree.leaves(LAYOUTS[layout]))} leaves"
  if layout == "stacked" and "freeze_below" in (first, second) and first != "layers":  # which leaves one layer
    return "depth 1 lies inside the stack of .* cut it first"
  if first in QUANTIZED and second in DECOMPOSED:
    return "takes arrays; got a Quantized: quantize after it"
  if first in QUANTIZED and second in ("int8", "nf4"):
    return "is a Quantized already; quantize the frozen side"
  if first == "train" and second in ("train", "freeze", "nested"):  # of the matrices that train already
    return "'../up/.' matches none of the"
  if second == "layers" and (first == "layers" or first == "freeze_below"):
    return "select must match a leaf in layers 1 to 1"
  return ""


def remembered(f):
  """`f` on shapes: what has the structure and the shapes of something before gives, or raises, what that did."""
  known = {}

  def call(*args):
    flat, structure = jax.tree.flatten(args)
    signature = structure, tuple((x.shape, x.dtype) for x in flat)
    if signature not in known:
      try:
        known[signature] = jax.eval_shape(f, *args)
      except (ValueError, TypeError) as e:
        known[signature] = e
    if isinstance(known[signature], Exception):
      raise known[signature]
    return known[signature]

  return call


def on_shapes(transform: ParamTransform) -> ParamTransform:
  split = remembered(lambda params: transform.split(KEY, params))
  return ParamTransform(lambda key, params: split(params), remembered(transform.join))


form = remembered(materialize)  # leaf by leaf


def attempt(transform: ParamTransform, params) -> str:
  """What went wrong, '' where nothing did."""
  try:
    frozen, trainable = transform.split(KEY, params)
  except (ValueError, TypeError) as e:
    return f"{type(e).__name__}: {e}"
  if any(not jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(trainable)):
    return "trains what is not of floating point"
  formed = map_with_path(lambda path, leaf: form(leaf), transform.join(frozen, trainable))
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), formed, params)
  return "" if jax.tree.all(same) else "joins to other shapes"


@pytest.mark.parametrize("layout,some", [
    ("stacked", SOME),
    pytest.param("stacked", EVERY, marks=pytest.mark.exhaustive),
    pytest.param("unrolled", EVERY, marks=pytest.mark.exhaustive),
], ids=["stacked-some", "stacked-every", "unrolled-every"])
def test_every_pair_composes_or_says_why_not(layout, some):
  """Every transform before and after each of some."""
  params, wrong = LAYOUTS[layout], []
  transforms = {name: on_shapes(make(ALL)) for name, make in EVERY.items()}
  for first, second in itertools.product(EVERY, EVERY):
    if first not in some and second not in some:
      continue
    want = refusal(first, second, layout)
    if second in WHOLE and not want and leaves_structured(transforms[first], params):
      want = "^$|select trains .* leaves that are not plain weights"  # refused where it would train one of those
    try:
      got = attempt(chain(transforms[first], transforms[second]), params)
    except Exception as e:  # any at all, for the others are to be seen as well
      got = f"join raises {type(e).__name__}: {e}"
    if not (re.search(want, got) if want else got == ""):
      wrong.append(f"{first}, then {second}: {got[:200] or 'composes'}{want and f'; wanted: {want}'}")
  assert not wrong, f"{len(wrong)} pairs:\n" + "\n".join(wrong[:40])


def leaves_structured(transform: ParamTransform, params) -> bool:
  return any(is_structured(leaf) for _, leaf in leaves_with_paths(transform.split(KEY, params)[0]))
