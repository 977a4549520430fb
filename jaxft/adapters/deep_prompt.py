"""Deep prompts: trained vectors that take the place of some positions' states before several layers."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.adapters.prefix import Config
from jaxft.adapters.protocol import Adapter
from jaxft.adapters.soft_prompt import PromptInit, random_prompt
from jaxft.checks import in_range, one_of
from jaxft.models.sites import Only
from jaxft.signatures import explain_errors


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["start"])
@dataclasses.dataclass(frozen=True)
class Overwrite:
  """Puts vectors in the place of the states from position `start` on; `values` is `[length, dim]`, for each example."""

  values: Any
  start: int

  def __call__(self, x: Array) -> Array:
    return x.at[:, self.start : self.start + self.values.shape[-2]].set(self.values.astype(x.dtype))


_NARROW = random_prompt(stddev=0.02)


@explain_errors
def deep_prompt(
    config: Config, length: int, *, depth: int, start: int = 1, init: PromptInit = _NARROW,
    site: Literal["embed", "embed/out"] = "embed",
) -> Adapter:
  """Prompts that stand in place of a template's words, new ones before each of the first `depth` layers.

  Before layer 0 the states at positions `start` to `start + length - 1` become `P_0`, before layer l < depth `P_l`;
  further layers pass on what comes out. Nothing is inserted: positions, masks and what is pooled stay as they are.
  Params `{'prompt': P_0 [length, dim], 'layers': {'prompt': P_1... [depth - 1, length, dim]}}`.

  >>> from jaxft.models.encoder import EncoderConfig
  >>> config = EncoderConfig(vocab_size=8, dim=4, num_layers=3, num_heads=2, mlp_dim=8)
  >>> prompt = deep_prompt(config, 2, depth=2, init=lambda key, length, dim: jnp.ones((length, dim)))
  >>> prompt.edits(prompt.init(jax.random.key(0)))["embed"](jnp.zeros((1, 4, 4)))[0, :, 0]
  Array([0., 1., 1., 0.], dtype=float32)

  Args:
    config: of the model.
    length: positions of the prompt; the texts must have as many from `start` on.
    depth: layers with prompts of their own, the first ones, in [1, num_layers].
    start: the first position: 1 is behind the token that opens a text.
    init: of `P_0`, such as `text_prompt` of the template's words; the others are normal with deviation 0.02.
    site: "embed", or "embed/out" for the upper part of a model, which starts from stored states (`models.cut`).

  Raises:
    ValueError: length below 1, depth outside its range, start below 0, or another site.

  Source: Khattak et al. 2022, MaPLe (arXiv 2210.03117), whose text prompts these are; CoPrompt, Roy and Etemad 2023
  (arXiv 2306.01195).
  """
  in_range("length", length, "[1, inf)")
  in_range("depth", depth, f"[1, {config.num_layers}]")
  in_range("start", start, "[0, inf)")
  one_of("site", site, ("embed", "embed/out"))
  layers = config.num_layers

  def draw(key: jax.Array) -> dict[str, Any]:
    first, others = jax.random.split(key)
    params: dict[str, Any] = {"prompt": init(first, length, config.dim)}
    if depth > 1:
      params["layers"] = {"prompt": 0.02 * jax.random.normal(others, (depth - 1, length, config.dim))}
    return params

  def edits(params: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {site: Overwrite(params["prompt"], start)}
    if depth > 1:
      rows = jnp.pad(params["layers"]["prompt"], ((0, layers - depth + 1), (0, 0), (0, 0)))
      found["layers/out"] = Only(Overwrite(rows, start), jnp.arange(layers) < depth - 1)
    return found

  return Adapter(draw, edits)
