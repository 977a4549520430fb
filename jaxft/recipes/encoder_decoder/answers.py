"""From records of prompts and answers to the loss of an encoder-decoder: how likely it finds the answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.data import tokenize_completions, tokenize_texts
from jaxft.formats.pretrained import Pretrained
from jaxft.losses import Mean
from jaxft.models import encoder_decoder
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig
from jaxft.models.remat import Policy
from jaxft.recipes.examples import Collate, lengths_up_to
from jaxft.recipes.tasks import column
from jaxft.training.recipe import Objective

FIELDS = (("prompt", "completion"), ("question", "answer"))


def answer_collate(
    model: Pretrained, first: Mapping[str, Any], *, max_length: int, one_length: bool = False
) -> Collate:
  """Records to `inputs`, which the encoder reads, and the answer's `ids`, `mask` and `loss_mask`.

  A prompt has the tokenizer's special tokens, an answer the end of text alone; one that is cut loses it. `max_length`
  is of each of the two; `one_length` as of `pair_collate`.

  Raises:
    ValueError: the first record has no prompt and completion, nor a question and an answer.
  """
  config, tokenizer = model.text_encoder_decoder()
  found = next((names for names in FIELDS if {*names} <= {*first}), None)
  if found is None:
    raise ValueError(f"an encoder-decoder learns from prompt and completion, or question and answer; got the fields "
                     f"{', '.join(first)}")
  prompt, answer = found
  shared = {"lengths": lengths_up_to(max_length, one_length), "pad_id": config.pad_id or 0}

  def collate(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answers = [{"prompt": "", "completion": text} for text in column(records, answer)]
    return {"inputs": tokenize_texts(column(records, prompt), tokenizer, **shared),
            **tokenize_completions(answers, tokenizer, eos_id=config.eos_id, special=False, **shared)}

  return collate


def answer_nll(
    config: EncoderDecoderConfig, *, dtype: Any = jnp.float32, remat: Policy = "dots"
) -> Callable[[Any, Any], tuple[Float[Array, "batch time"], Float[Array, "batch time"]]]:
  """`(params, batch) -> (nats, weights)` of each token of the answers, of a batch of `answer_collate`.

  `where` `[B]`, if present, is False at rows that fill up a batch.
  """

  def nll(params: Any, batch: Any) -> tuple[Array, Array]:
    where = batch["loss_mask"] * batch["where"][:, None] if "where" in batch else batch["loss_mask"]
    return encoder_decoder.target_nll(
        params, config, batch["inputs"]["ids"], batch["ids"], inputs_mask=batch["inputs"]["mask"],
        targets_mask=batch["mask"], where=where, dtype=dtype, remat=remat)

  return nll


def answers(config: EncoderDecoderConfig, *, dtype: Any = jnp.float32, remat: Policy = "dots") -> Objective:
  """The mean negative log-likelihood of the tokens of the answers, over all of them and not row by row."""
  nll = answer_nll(config, dtype=dtype, remat=remat)
  return lambda params, batch, key: (Mean.of(*nll(params, batch)), {})
