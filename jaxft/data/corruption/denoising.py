"""Texts with holes and what fills them, and UL2's mixture of such tasks. Fixed shapes, under `jax.jit` and `vmap`."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range, one_of
from jaxft.data.corruption.spans import prefix_mask, random_spans_mask
from jaxft.signatures import AnyArray, check_arrays, explain_errors


class Denoised(NamedTuple):
  """A text with holes, and what fills them.

  Attributes:
    inputs: the text, a sentinel in place of each hidden span, and the end of text; padded, or cut off.
    targets: each sentinel and the span that it stands for, and the end of text; padded, or cut off.
    input_length, target_length: how long the two are before they are cut; more than their size says that they were.
    spans: the number of sentinels.
  """

  inputs: Int[Array, " inputs"]
  targets: Int[Array, " targets"]
  input_length: Int[Array, ""]
  target_length: Int[Array, ""]
  spans: Int[Array, ""]


@check_arrays
def span_corruption(
    tokens: Int[AnyArray, " time"],
    hidden: Bool[AnyArray, " time"],
    length: int | Int[AnyArray, ""],
    *,
    sentinel_start: int | Int[AnyArray, ""],
    eos_id: int,
    inputs_length: int,
    targets_length: int,
    pad_id: int = 0,
    sentinels: bool | Bool[AnyArray, ""] = True,
) -> Denoised:
  """T5's task: `a <s0> d <s1> </s>` and `<s0> b c <s1> e f </s>` of a text `a b c d e f` without `b c` and `e f`.

  Args:
    tokens: the text.
    hidden: which of its tokens are hidden, in any spans, at its start too; see `random_spans_mask`, `prefix_mask`.
    length: of the text; what follows is padding.
    sentinel_start: the id of the first sentinel; the next ones count down from it.
    eos_id: ends both.
    inputs_length, targets_length: the sizes of both; see `span_lengths`.
    pad_id: fills them up.
    sentinels: False leaves the sentinels out, as a prefix language model has none.

  Example:
    >>> hidden = jnp.array([False, True, True, False, True, True])
    >>> text = span_corruption(jnp.arange(10, 16), hidden, 6, sentinel_start=99, eos_id=1, inputs_length=6,
    ...                        targets_length=8)
    >>> print(text.inputs, text.targets)
    [10 99 13 98  1  0] [99 11 12 98 14 15  1  0]

  Source: Raffel et al. 2019, T5 (arXiv 1910.10683).
  """
  at = jnp.arange(tokens.shape[0])
  real = at < length
  hidden = jnp.asarray(hidden) & real
  begins = hidden & ~jnp.roll(hidden, 1).at[0].set(False)
  marks = begins & sentinels
  sentinel = jnp.asarray(sentinel_start, jnp.int32) - (jnp.cumsum(begins) - 1).astype(jnp.int32)
  tokens = jnp.asarray(tokens, jnp.int32)

  def place(kept: Array, size: int) -> tuple[Array, Array]:
    """Sentinels before, and what is kept at, each place of the text, moved together."""
    width = marks.astype(jnp.int32) + kept
    end = jnp.cumsum(width)
    out = jnp.full(size, pad_id, jnp.int32)
    out = out.at[jnp.where(marks, end - width, size)].set(sentinel, mode="drop")
    out = out.at[jnp.where(kept, end - 1, size)].set(tokens, mode="drop")
    return out.at[end[-1]].set(eos_id, mode="drop"), end[-1] + 1

  inputs, input_length = place(real & ~hidden, inputs_length)
  targets, target_length = place(hidden, targets_length)
  return Denoised(inputs, targets, input_length, target_length, jnp.sum(marks))


@explain_errors
def span_lengths(inputs_length: int, *, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
  """How long a text must be to fill `inputs_length` once its spans are hidden, and how long the targets then are.

  >>> span_lengths(512)  # T5's
  (568, 114)

  Args:
    inputs_length: with the end of text, at least 3.
    density, mean_span: see `random_spans_mask`.

  Returns:
    `(tokens_length, targets_length)`.

  Raises:
    ValueError: a number out of range.

  Source: Raffel et al. 2019, T5 (arXiv 1910.10683).
  """
  in_range("inputs_length", inputs_length, "[3, inf)")
  in_range("density", density, "(0, 1)")
  in_range("mean_span", mean_span, "[1, inf)")

  def both(length: int) -> tuple[int, int]:
    hidden, spans = hidden_and_spans(length, density, mean_span)
    return length - hidden + spans + 1, hidden + spans + 1

  length = 2
  while both(length + 1)[0] <= inputs_length:
    length += 1
  targets = both(length)[1]
  # T5's own exception: with half of the text hidden the targets are not to be the longer side.
  return (length - 1, targets - 1) if density == 0.5 and targets > inputs_length else (length, targets)


def hidden_and_spans(length: int, density: float, mean_span: float) -> tuple[int, int]:
  """Of a text of two tokens or more; the numbers that `random_spans_mask` hides."""
  hidden = min(max(round(length * density), 1), length - 1)
  return hidden, min(max(round(hidden / mean_span), 1), hidden, length - hidden)


class Denoiser(NamedTuple):
  """One task of a mixture.

  Attributes:
    mode: "R" for short spans, "S" for the end of the text, "X" for much or long ones: the token that announces it.
    density, mean_span: of spans; see `random_spans_mask`. Of "prefix" the share of the text that is hidden on average.
    kind: "spans" or "prefix".
  """

  mode: str
  density: float
  mean_span: float = 3.0
  kind: Literal["spans", "prefix"] = "spans"


T5 = ((Denoiser("R", 0.15, 3.0), 1.0),)
UL2 = (
    (Denoiser("R", 0.15, 3.0), 1.0), (Denoiser("R", 0.15, 8.0), 1.0), (Denoiser("S", 0.25, kind="prefix"), 1.0),
    (Denoiser("X", 0.5, 3.0), 1.0), (Denoiser("X", 0.5, 8.0), 1.0), (Denoiser("X", 0.15, 64.0), 1.0),
    (Denoiser("X", 0.5, 64.0), 1.0),
)
UL2R = (
    (Denoiser("R", 0.15, 3.0), 0.25), (Denoiser("X", 0.15, 32.0), 0.125), (Denoiser("X", 0.5, 3.0), 0.125),
    (Denoiser("S", 0.25, kind="prefix"), 0.5),
)


class Mixed(NamedTuple):
  """`text` as of `span_corruption`, whose inputs begin with the token of the mode; `task`, the denoiser's number."""

  text: Denoised
  task: Int[Array, ""]


@check_arrays
def mixture_of_denoisers(
    key: jax.Array,
    tokens: Int[AnyArray, " time"],
    length: int | Int[AnyArray, ""],
    *,
    denoisers: Sequence[tuple[Denoiser, float]] = UL2,
    mode_ids: Mapping[str, int] | None = None,
    sentinel_start: int,
    sentinels: int = 100,
    eos_id: int,
    inputs_length: int,
    targets_length: int,
    pad_id: int = 0,
    roll: bool = False,
) -> Mixed:
  """UL2: one of several denoising tasks, drawn by weight, announced by a token before the inputs.

  The mode token is used again after pretraining: the same weights behave by it as a denoiser or as a language model.

  Args:
    key: draws the task and the spans.
    tokens: the text.
    length: of the text; what follows is padding.
    denoisers: `(task, weight)`: `UL2`, `UL2R`, `T5` or one's own.
    mode_ids: of each mode the token that is put first; None puts none.
    sentinel_start: see `span_corruption`.
    sentinels: how many ids there are from sentinel_start down.
    eos_id, inputs_length, targets_length, pad_id: see `span_corruption`; the mode token is one of the inputs.
    roll: see `random_spans_mask`; UL2R does, UL2 does not.

  Returns:
    The text and the number of its task. Of "prefix" tasks no sentinel is written, and the hidden share is uniform in
    [0, 2 density], so that its mean is the density.

  Raises:
    ValueError: no denoisers, weights that are negative or all 0, a density above 1/2 of a prefix, a mode without an id,
      or a task that may need more sentinels than there are.

  Example:
    >>> text, task = mixture_of_denoisers(
    ...     jax.random.key(0), jnp.arange(10, 18), 8, denoisers=T5, mode_ids={"R": 5}, sentinel_start=99, eos_id=1,
    ...     inputs_length=11, targets_length=4)
    >>> text.inputs, text.targets  # one of eight tokens is hidden
    (Array([ 5, 10, 11, 12, 13, 14, 15, 16, 99,  1,  0], dtype=int32), Array([99, 17,  1,  0], dtype=int32))

  Sources: Tay et al. 2022, UL2 (arXiv 2205.05131) and UL2R (arXiv 2210.11399).
  """
  tasks, weights = [task for task, _ in denoisers], [weight for _, weight in denoisers]
  if not tasks or min(weights) < 0 or not sum(weights) > 0:
    raise ValueError(f"denoisers must be tasks with weights >= 0, not all 0; got weights {weights}")
  for task in tasks:
    one_of("kind", task.kind, ("spans", "prefix"))
    if task.kind == "prefix":
      in_range("density of a prefix", task.density, "(0, 0.5]")
    else:
      in_range("density", task.density, "(0, 1)")
      in_range("mean_span", task.mean_span, "[1, inf)")
      most = hidden_and_spans(max(tokens.shape[0], 2), task.density, task.mean_span)[1]
      if most > sentinels:
        raise ValueError(f"sentinels must be at least {most} for {task} of {tokens.shape[0]} tokens; got {sentinels}")
  if mode_ids is not None and (missing := sorted({task.mode for task in tasks} - set(mode_ids))):
    raise ValueError(f"mode_ids must have the modes of all denoisers; got none for {', '.join(missing)}")
  for_task, for_spans, for_prefix = jax.random.split(key, 3)
  number = jax.random.choice(for_task, len(tasks), p=jnp.array(weights, jnp.float32) / sum(weights))
  of = lambda values: jnp.array(values, jnp.float32)[number]
  density, is_prefix = of([t.density for t in tasks]), of([t.kind == "prefix" for t in tasks]) > 0
  size = tokens.shape[0]
  spans = random_spans_mask(for_spans, length, max_length=size, density=density,
                            mean_span=of([t.mean_span for t in tasks]), roll=roll)
  end = prefix_mask(for_prefix, length, max_length=size, min_fraction=jnp.maximum(1 - 2 * density, 0))
  hidden = jnp.where(is_prefix, end, spans)
  room = inputs_length - (mode_ids is not None)
  text = span_corruption(tokens, hidden, length, sentinel_start=sentinel_start, eos_id=eos_id, inputs_length=room,
                         targets_length=targets_length, pad_id=pad_id, sentinels=~is_prefix)
  if mode_ids is not None:
    mode = jnp.array([mode_ids[t.mode] for t in tasks], jnp.int32)[number]
    text = text._replace(inputs=jnp.concatenate([mode[None], text.inputs]), input_length=text.input_length + 1)
  return Mixed(text, number)


@check_arrays
def to_prefix_lm(
    text: Denoised, *, length: int, pad_id: int = 0
) -> tuple[Int[Array, " length"], Int[Array, ""], Float[Array, " length"]]:
  """Inputs and targets one after the other, for a decoder that reads the inputs both ways.

  Args:
    text: of `span_corruption` or `mixture_of_denoisers`; what was cut off of it is not here either.
    length: the size of the row; what does not fit is cut off.
    pad_id: fills it up.

  Returns:
    `(tokens, prefix_length, loss_mask)`: the tokens of the inputs, and 1 at the targets, in float32.

  Example:
    >>> text = span_corruption(jnp.array([5, 6, 7]), jnp.array([False, False, True]), 3, sentinel_start=99, eos_id=1,
    ...                        inputs_length=5, targets_length=4)
    >>> tokens, prefix, mask = to_prefix_lm(text, length=9)
    >>> print(tokens, prefix, mask)
    [ 5  6 99  1 99  7  1  0  0] 4 [0. 0. 0. 0. 1. 1. 1. 0. 0.]
  """
  prefix = jnp.minimum(text.input_length, text.inputs.shape[0])
  count = jnp.minimum(text.target_length, text.targets.shape[0])
  at = jnp.arange(length)
  from_inputs = text.inputs[jnp.minimum(at, text.inputs.shape[0] - 1)]
  from_targets = text.targets[jnp.clip(at - prefix, 0, text.targets.shape[0] - 1)]
  is_target = (at >= prefix) & (at < prefix + count)
  tokens = jnp.where(at < prefix, from_inputs, jnp.where(is_target, from_targets, pad_id))
  return tokens, prefix, is_target.astype(jnp.float32)
