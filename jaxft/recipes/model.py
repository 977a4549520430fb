"""`jaxft.load`: a pretrained or tuned model with what one does with it, each a line over the library's functions."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.checks import check_texts
from jaxft.data.chat.rendering import render_chat
from jaxft.data.images import read_image
from jaxft.decoding.conditional import stepwise_encoder_decoder
from jaxft.decoding.generate import generate
from jaxft.decoding.stepwise import stepwise_decoder
from jaxft.evaluation.embed import embed_images, embed_texts
from jaxft.formats import pretrained
from jaxft.formats.pretrained import Pretrained
from jaxft.models import clip, decoder, pixels
from jaxft.models.config.clip import ClipConfig
from jaxft.recipes import tasks
from jaxft.recipes.examples import special_tokens
from jaxft.recipes.objectives import features
from jaxft.signatures import explain_errors


class Model(Pretrained):
  """A pretrained model, and its vectors, scores and texts."""

  def encode(self, inputs: Sequence[Any], *, max_length: int | None = None) -> Float[np.ndarray, "inputs dim"]:
    """One vector for each text, or each image; a CLIP has unit vectors of both, in one space.

    Args:
      inputs: texts of an encoder; paths, pictures of Pillow's or arrays of bytes of a model of images; of a CLIP
        either, all of one kind: what is a string is a text there, and a `pathlib.Path` an image.
      max_length: the most tokens of a text, at least 1; None takes the model's own, which none exceeds.

    Raises:
      ValueError: it is a decoder, or there is no input, or max_length is no number of tokens.
      TypeError: the inputs are one text or path, or of another kind.
    """
    if isinstance(inputs, (str, bytes, os.PathLike)):
      raise TypeError(f"inputs must be a sequence of texts or images; got one, {inputs!r:.60}")
    if self.kind == "dual encoder":
      texts = sum(isinstance(one, str) for one in inputs)
      if 0 < texts < len(inputs):
        raise ValueError(f"inputs must be all texts or all images; got {texts} texts among {len(inputs)}")
      images = not texts
    else:
      images = self.kind == "vision"
    if images:
      return self._features(inputs).astype(np.float32)
    config, tokenizer = self._reader()
    check_texts("inputs", inputs)
    embed = functools.partial(_text_vectors(config), self.params)
    return embed_texts(embed, inputs, tokenizer, max_length=self._length(max_length))

  def logits(self, inputs: Any, *, max_length: int | None = None) -> Float[Array, "..."]:
    """Scores: of a classifier `[inputs, classes]`, of a regressor `[inputs, 1]`, of a decoder `[inputs, time, vocab]`.

    Args:
      inputs: texts, or images; of a decoder also ids `[inputs, time]`. Texts of a decoder are padded on the right.
      max_length: the most tokens of a text, of an encoder; None takes the model's own.

    Raises:
      ValueError: it is an encoder or a model of images without a head, or a text is empty.
    """
    if self.kind == "decoder":
      config, tokenizer = self.text_decoder()
      if not hasattr(inputs, "ndim"):
        check_texts("inputs", inputs)
        rows = [tokenizer.encode(text).ids for text in inputs]
        if not rows or not all(rows):
          raise ValueError("inputs must hold at least one token each; got an empty text, or none")
        inputs = np.zeros((len(rows), max(map(len, rows))), np.int32) + (config.pad_id or 0)
        for i, row in enumerate(rows):
          inputs[i, : len(row)] = row
      elif isinstance(inputs, Tracer):
        pass  # nothing is known of it yet
      elif not jnp.issubdtype(inputs.dtype, jnp.integer) or inputs.ndim != 2 or not inputs.size:
        raise ValueError(f"inputs must be texts, or integer ids [inputs, time]; got {inputs.dtype} "
                         f"{list(inputs.shape)}")
      elif not 0 <= (least := int(inputs.min())) <= (most := int(inputs.max())) < config.vocab_size:
        raise ValueError(f"inputs must hold ids in [0, vocab_size = {config.vocab_size}); got "
                         f"{least if least < 0 else most}")
      hidden, *_ = decoder.hidden_states(self.params, config, inputs)
      return decoder.logits(self.params, config, hidden)
    if self.head is None:
      raise ValueError(f"{self.name} has no head that gives scores; encode gives its vectors")
    if self.kind == "vision":
      return self.head(self._features(inputs))
    config, tokenizer = self.text_encoder()
    check_texts("inputs", inputs)
    pooling = config.pooling if self.head.dense is None else "cls"
    embed = functools.partial(
        _text_vectors(dataclasses.replace(config, pooling=pooling, normalize=False)), self.params)
    return self.head(embed_texts(embed, inputs, tokenizer, max_length=self._length(max_length)))

  def generate(
      self, prompts: Sequence[str], *, chat: bool = False, system: str | None = None, max_new_tokens: int = 128,
      temperature: float = 0.0, seed: int = 0, **options: Any,
  ) -> list[str]:
    """The text that a decoder adds to each prompt, or answers it with; or an encoder-decoder.

    Args:
      prompts: texts, continued together as one batch.
      chat: each is a user's turn, written out by the checkpoint's chat template.
      system: with `chat`, the message before it.
      max_new_tokens: most tokens to add.
      temperature: 0 takes the likeliest token.
      seed: of the draws.
      options: `top_k`, `top_p`, `min_p`, of `jaxft.decoding.generate`.

    Raises:
      ValueError: it is no decoder, has no chat template where one is asked for, or gives scores that are not finite.
    """
    check_texts("prompts", prompts)
    answers = answer(self, prompts, chat=chat, system=system, max_new_tokens=max_new_tokens, temperature=temperature,
                     seed=seed, **options)
    return [row["text"] for row in answers]

  def _length(self, max_length: int | None) -> int:
    """The most tokens of a text, of those asked for and the model's own."""
    if max_length is not None and (type(max_length) is not int or max_length < 1):
      raise ValueError(f"max_length must be a number of tokens, at least 1, or None; got {max_length!r}")
    return self.max_length if max_length is None else min(max_length, self.max_length)

  def _reader(self) -> tuple[Any, Any]:
    """The config and the tokenizer of what reads texts."""
    if self.kind != "dual encoder":
      return self.text_encoder()
    if self.tokenizer is None:
      raise ValueError(f"{self.name} has no tokenizer: its texts are to be ids, of jaxft.models.clip.embed_texts")
    return self.config, self.tokenizer

  def _features(self, images: Sequence[Any]) -> Float[np.ndarray, "images dim"]:
    if not len(images):
      raise ValueError("inputs must hold at least one image; got none")
    config: Any = self.config.vision if isinstance(self.config, ClipConfig) else self.config
    shown = np.stack([read_image(image, config.image_size, config.framing) for image in images])
    run = _image_vectors(self.config)
    return embed_images(lambda batch: run(self.params, {"images": batch}), shown)


# Kept by config: a function made anew at each call would be compiled at each call.
@functools.cache
def _text_vectors(config: Any) -> Any:
  if isinstance(config, ClipConfig):
    return jax.jit(lambda params, ids, mask: clip.embed_texts(params, config, ids, mask, remat="none"))
  return tasks.embedding_function(config)


@functools.cache
def _image_vectors(config: Any) -> Any:
  if isinstance(config, ClipConfig):
    standardized = lambda images: pixels.standardize(images, mean=config.vision.mean, std=config.vision.std)
    return jax.jit(
        lambda params, batch: clip.embed_images(params, config, standardized(batch["images"]), remat="none"))
  return jax.jit(features(config, remat="none"))


@explain_errors
def load(name_or_path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, stacked: bool = True) -> Model:
  """A model by the name of a preset or from a folder or GGUF file; `jaxft.formats.load` says which.

  >>> model = load("minilm-l6:tiny")
  >>> model.encode(["a text", "another"]).shape
  (2, 48)
  >>> model
  Model minilm-l6:tiny: encoder of 1,546,368 parameters (float32)
    EncoderConfig of 48 dimensions; reads texts of up to 256 tokens

  Args:
    name_or_path, dtype, stacked: see `jaxft.formats.load`. A tuned classifier or regressor has its head too.

  Raises:
    ValueError, OSError: see there.
  """
  if not isinstance(name_or_path, (str, os.PathLike)):
    raise TypeError(f"name_or_path must be the name of a preset or a path; got {name_or_path!r:.80}")
  found = pretrained.load(name_or_path, dtype=dtype, stacked=stacked)
  head = found.head
  if head is None and os.path.exists(os.path.join(name_or_path, "output.safetensors")):
    from jaxft.recipes.output import load_output

    head = load_output(os.fspath(name_or_path))
  return Model(**{**vars(found), "head": head})


def answer(
    model: Pretrained, prompts: Sequence[str], *, chat: bool = False, system: str | None = None, seed: int = 0,
    dtype: Any = jnp.float32, **options: Any,
) -> list[dict[str, Any]]:
  """One dict a prompt: `prompt`, `text`, `tokens` and their `log_probs`.

  Raises:
    ValueError: the model writes no text or gives scores that are not finite, a prompt is empty, or a chat is asked of
      one without a template.
  """
  of_decoder = model.kind != "encoder-decoder"
  config, tokenizer = model.text_decoder() if of_decoder else model.text_encoder_decoder()
  if chat and not of_decoder:
    raise ValueError(f"chat must be False of an encoder-decoder, which has no chat template; {model.name} is one")
  rows = [encode_turns(model, _turns(prompt, system)) if chat else encode_prompt(model, prompt) for prompt in prompts]
  if not rows:
    raise ValueError("prompts must hold at least one text; got none")
  longest = max(map(len, rows))
  # To a multiple of 16 tokens, so that prompts of like length share a compilation; no further than the context.
  length = max(longest, min(-(-longest // 16) * 16, config.max_length))
  stepwise: Any = stepwise_decoder if of_decoder else stepwise_encoder_decoder
  if model.end_ids:
    options.setdefault("stop", tuple(i for i in (config.eos_id, *model.end_ids) if i is not None))
  ids, mask = left_padded(rows, config.pad_id or 0, length)
  out = generate(stepwise(model.params, config, dtype=dtype), ids, jax.random.key(seed), mask=mask, **options)
  answers = []
  for prompt, tokens, kept, log_probs, _ in zip(prompts, *jax.device_get(out), strict=True):
    tokens, log_probs = tokens[kept].tolist(), log_probs[kept].tolist()
    if -1 in tokens:
      raise ValueError(f"model must give finite scores; {model.name} gave others after the prompt {prompt[-40:]!r}")
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    answers.append({"prompt": prompt, "text": text, "tokens": tokens, "log_probs": log_probs})
  return answers


def _turns(prompt: str, system: str | None) -> list[dict[str, str]]:
  turns = [] if system is None else [{"role": "system", "content": system}]
  return [*turns, {"role": "user", "content": prompt}]


def encode_prompt(model: Pretrained, prompt: str) -> list[int]:
  """The tokens of a text that is to be continued; ValueError where there is none."""
  _, tokenizer = model.text_encoder_decoder() if model.kind == "encoder-decoder" else model.text_decoder()
  return _some(tokenizer.encode(prompt).ids)


def encode_turns(model: Pretrained, turns: Sequence[Mapping[str, str]]) -> list[int]:
  """The tokens of a chat that is to be answered, by the checkpoint's template; ValueError where it has none."""
  _, tokenizer = model.text_decoder()
  if model.chat_template is None:
    raise ValueError(f"a chat needs a checkpoint with a chat template; {model.name} has none")
  text = render_chat(turns, model.chat_template, add_generation_prompt=True, **special_tokens(model))
  # The template writes the special tokens itself.
  return _some(tokenizer.encode(text, add_special_tokens=False).ids)


def _some(ids: list[int]) -> list[int]:
  if not ids:
    raise ValueError("a prompt must have at least one token; got an empty one")
  return ids


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask of so many columns, padded on the left."""
  ids, mask = np.full((len(rows), length), pad_id, np.int32), np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    ids[i, length - len(row):] = row
    mask[i, length - len(row):] = 1
  return ids, mask
