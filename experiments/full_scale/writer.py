"""A captioner that writes: where it starts, what it says of pictures, and its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxft.checks import in_range
from jaxft.decoding import generate, stepwise_decoder
from jaxft.formats.huggingface import save_directory
from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.models import captioner
from jaxft.recipes.model import Model, load


def begin(
    start: Path | None, decoder: str, *, width: int, length: int, seed: int
) -> tuple[dict[str, Any], Model]:
  """The captioner to start from, and the model of its decoder.

  Args:
    start: the folder of a run that has ended; None takes the decoder, and a random projector.
    decoder: as of `jaxft.load`.
    width: of a picture's vector.
    length, seed: of a random projector.

  Raises:
    ValueError: `start` holds no captioner, or one of another width; the decoder has no token that begins a text.
  """
  if start is None:
    model = load(decoder)
    config, _ = model.text_decoder("decoder")
    return captioner.init(jax.random.key(seed), model.params, config, width=width, length=length), model
  folder = start / "captioner"
  if not (folder / "prefix.safetensors").exists():
    raise ValueError(f"start must be the folder of a run that has ended, with captioner/prefix.safetensors; got "
                     f"{start}")
  model, file = load(folder), open_checkpoint(folder / "prefix.safetensors")
  prefix: dict[str, Any] = {"hidden": {}, "out": {}}
  for name in file.tensors:
    part, leaf = name.split(".")
    prefix[part][leaf] = jnp.asarray(file.read(name))
  if (found := prefix["hidden"]["kernel"].shape[0]) != width:
    raise ValueError(f"vision must give vectors of {found} numbers, as the captioner of start reads; got {width}")
  return {"prefix": prefix, "decoder": model.params}, model


class Writer:
  """What a captioner writes: sampled, or the likeliest."""

  def __init__(self, model: Model, longest: int):
    self.config, self.tokenizer = model.text_decoder("decoder")
    first = self.config.bos_id if self.config.bos_id is not None else self.config.eos_id
    if self.config.eos_id is None or first is None:
      raise ValueError(f"decoder must have a token that ends a text; {model.name} has none in its config")
    self.first: int = first
    in_range("longest", longest, "[2, inf)")
    self.longest = longest
    self._write = {hot: jax.jit(self._tokens(hot)) for hot in (0.0, 1.0)}

  def _tokens(self, temperature: float) -> Callable[..., Any]:
    def write(params: Any, features: Any, key: Any) -> Any:
      model = stepwise_decoder(
          params["decoder"], self.config, prompt_edits=captioner.prompt_edits(params, self.config, features))
      first = jnp.full((len(features), 1), self.first, jnp.int32)
      out = generate(model, first, key, max_new_tokens=self.longest, temperature=temperature)
      beside = lambda left, right: jnp.concatenate([left, right.astype(jnp.int32)], axis=1)
      return beside(first, out.tokens), beside(jnp.ones_like(first), out.mask)

    return write

  def __call__(
      self, params: Any, features: Float[np.ndarray, "n width"], key: Any = None
  ) -> tuple[Int[np.ndarray, "n time"], Int[np.ndarray, "n time"], list[str]]:
    """Ids with the token that begins them, their mask, and the texts; sampled with a key, else the likeliest."""
    hot = 0.0 if key is None else 1.0
    ids, mask = jax.device_get(self._write[hot](params, features, jax.random.key(0) if key is None else key))
    texts = [self.tokenizer.decode(row[real != 0].tolist(), skip_special_tokens=True).strip() or "."
             for row, real in zip(ids, mask, strict=True)]
    return ids, mask, texts

  def rows(self, texts: list[str]) -> tuple[Int[np.ndarray, "n time"], Int[np.ndarray, "n time"]]:
    """Captions as ids, each begun and ended, cut to the longest."""
    ids = np.zeros((len(texts), self.longest + 1), np.int32)
    mask = np.zeros_like(ids)
    for i, text in enumerate(texts):
      row = [self.first, *self.tokenizer.encode(text, add_special_tokens=False).ids[: self.longest - 1],
             self.config.eos_id]
      ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def save(params: dict[str, Any], writer: Writer, folder: Path) -> None:
  """The captioner as `begin` reads it: the decoder as Hugging Face has it, and the projector beside it."""
  save_directory(params["decoder"], writer.config, folder, tokenizer=writer.tokenizer)
  prefix = {f"{part}.{name}": np.asarray(x) for part, leaves in params["prefix"].items() for name, x in leaves.items()}
  save_file(prefix, folder / "prefix.safetensors")
