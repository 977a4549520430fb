"""Tokenizers of checkpoints, as `tokenizers.Tokenizer`: those of Hugging Face folders, and those rebuilt from GGUF."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from jaxft.checks import one_of
from jaxft.formats.safetensors import read_json

# The pre-tokenizers of llama.cpp that are rebuilt here, by its name for them.
PRE_TOKENIZERS = {
  "smollm": lambda: pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
  "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}
_CONTROL, _USER_DEFINED = 3, 4
GENERATION = "generation_config.json"


class TokenizerFiles(NamedTuple):
  """What a Hugging Face folder says about its tokenizer; None for what it lacks."""

  tokenizer: Tokenizer | None
  chat_template: str | None
  max_length: int | None


def read_tokenizer(path: str | os.PathLike) -> TokenizerFiles:
  """The tokenizer of a Hugging Face folder, with neither padding nor truncation, and its chat template.

  Both are left to the data pipeline: saved tokenizers often pad to a length that suited whoever saved them.
  `max_length` is what sentence-transformers truncates to (`sentence_bert_config.json`).

  Raises:
    ValueError: a file is corrupt; names it.
  """
  path = Path(path)
  tokenizer = None
  if (file := path / "tokenizer.json").is_file():
    try:
      with _quiet_panics():
        tokenizer = Tokenizer.from_file(str(file))
    except BaseException as e:  # the library raises bare Exception; its panics are none
      if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
        raise
      raise ValueError(f"{file} is not a valid tokenizer: {e}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
  max_length = None
  if (file := path / "sentence_bert_config.json").is_file():
    max_length = read_json(file).get("max_seq_length")
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
      raise ValueError(f"{file}: max_seq_length must be a positive integer or null; got {max_length!r}")
  return TokenizerFiles(tokenizer, chat_template(path), max_length)


def more_end_ids(path: str | os.PathLike, config: Any) -> tuple[int, ...]:
  """The tokens beside `config.eos_id` that end an answer, of a Hugging Face folder's generation settings or config.

  Raises:
    ValueError: one is no row of the embedding; names the file.
  """
  found: list[int] = []
  for name in (GENERATION, "config.json"):
    said = read_json(file).get("eos_token_id") if (file := Path(path) / name).is_file() else None
    ids = said if isinstance(said, list) else [] if said is None else [said]
    for token in ids:
      if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < config.vocab_size:
        raise ValueError(f"{file}: eos_token_id must be tokens below vocab_size {config.vocab_size}; got {token!r:.40}")
    found += ids
  return tuple(token for token in dict.fromkeys(found) if token != config.eos_id)


def read_generation(path: str | os.PathLike) -> dict[str, Any]:
  """What a Hugging Face folder says of how its model answers: `generation_config.json` as it is, empty without one.

  Raises:
    ValueError: the file is no mapping; names it.
  """
  file = Path(path) / GENERATION
  return read_json(file) if file.is_file() else {}


def generation_json(
    said: Mapping[str, Any], end_ids: Sequence[int], config: Mapping[str, Any]
) -> dict[str, Any] | None:
  """The `generation_config.json` of a model that is saved, None where nothing is to be said.

  >>> generation_json({"eos_token_id": [2, 5], "top_p": 0.9}, (5,), {"eos_token_id": 2})
  {'eos_token_id': [2, 5], 'top_p': 0.9}

  Args:
    said: what the file said of the model that was tuned, kept as it is, but for tokens that end an answer and are not
      in it.
    end_ids: these, beside that of the config.
    config: the `config.json`.
  """
  roles = {f"{name}_token_id": config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
  eos = roles["eos_token_id"]
  ends = list(dict.fromkeys(token for token in (*(eos if isinstance(eos, list) else [eos]), *end_ids)
                            if token is not None))
  if not said:
    return {**roles, "eos_token_id": ends} if end_ids else None
  given = said.get("eos_token_id")
  kept = given if isinstance(given, list) else [] if given is None else [given]
  if {*end_ids} <= {*kept}:
    return dict(said)
  return {**said, "eos_token_id": list(dict.fromkeys([*kept, *ends]))}


@contextlib.contextmanager
def _quiet_panics() -> Iterator[None]:
  """Keeps from standard error the trace that a panic of the library prints; the error that follows names it."""
  with tempfile.TemporaryFile() as said:
    try:
      own = os.dup(2)
    except OSError:  # closed
      yield
      return
    os.dup2(said.fileno(), 2)
    panicked = False
    try:
      yield
    except BaseException as e:
      panicked = type(e).__name__ == "PanicException"
      raise
    finally:
      os.dup2(own, 2)
      os.close(own)
      said.seek(0)
      if not panicked and (others := said.read()):  # another thread's
        os.write(2, others)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Raises ValueError where a tokenizer can give an id for which an embedding of `vocab_size` rows has none."""
  ids = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
  # What a post-processor puts around a text carries ids of its own, which need not be in the vocabulary.
  empty = tokenizer.encode("")
  ids |= dict(zip(empty.ids, empty.tokens, strict=True))
  if over := sorted(i for i in ids if i >= vocab_size):
    raise ValueError(
        f"the tokenizer has {len(over)} tokens for which the embedding of {vocab_size} rows has none, such as "
        f"{ids[over[0]]!r} (id {over[0]}); take the tokenizer that goes with the checkpoint, or give the embedding "
        "more rows")


def chat_template(path: Path) -> str | None:
  """The chat template of a Hugging Face folder, or None.

  It is in a file of its own (transformers 5) or in `tokenizer_config.json`, where it may be one of several.
  """
  if (file := path / "chat_template.jinja").is_file():
    return file.read_text(encoding="utf-8")
  if not (file := path / "tokenizer_config.json").is_file():
    return None
  template = read_json(file).get("chat_template")
  if isinstance(template, list):
    template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
  if template is not None and not isinstance(template, str):
    raise ValueError(f"{file}: chat_template must be text; got {json.dumps(template)[:80]}")
  return template


def byte_level_bpe(
    tokens: Any, merges: Any, *, pre: Any, kinds: Any = None, bos_id: int | None = None
) -> Tokenizer:
  """A byte-level BPE tokenizer from the lists that a GGUF file keeps.

  Args:
    tokens: the vocabulary, in the order of its ids.
    merges: pairs, the strongest first, each two tokens with a space between.
    pre: llama.cpp's name of the pre-tokenizer.
    kinds: llama.cpp's kind of each token: control tokens (3) and user-defined ones (4) are never split.
    bos_id: a token to begin every text with; None for none.

  Raises:
    ValueError: a list is malformed, or the pre-tokenizer is not one that is rebuilt exactly.
  """
  one_of("pre-tokenizer", pre, PRE_TOKENIZERS)
  _check_strings("tokens", tokens)
  _check_strings("merges", merges)
  vocab = {token: i for i, token in enumerate(tokens)}
  if len(vocab) != len(tokens):
    raise ValueError(f"tokens must be distinct; {len(tokens) - len(vocab)} occur more than once")
  if kinds is not None and len(kinds) != len(tokens):
    raise ValueError(f"kinds must be as many as tokens; got {len(kinds)} and {len(tokens)}")
  pairs = [tuple(merge.split(" ")) for merge in merges]
  if wrong := [merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2]:
    raise ValueError(f"merges must be pairs with a space between; got {wrong[0]!r}")
  try:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False, byte_fallback=False))
    if bos_id is not None:
      bos = tokens[bos_id]
      tokenizer.post_processor = processors.TemplateProcessing(
          single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, bos_id)])
  except Exception as e:  # the library raises bare Exception, for a merge of unknown tokens
    raise ValueError(f"tokens and merges make no tokenizer: {e}") from None
  tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
  tokenizer.decoder = decoders.ByteLevel()
  never_split = {_CONTROL: True, _USER_DEFINED: False}
  tokenizer.add_tokens([
    AddedToken(token, normalized=False, special=never_split[int(kind)])
    for token, kind in zip(tokens, kinds if kinds is not None else (), strict=False) if int(kind) in never_split
  ])
  return tokenizer


def _check_strings(name: str, value: Sequence[str]) -> None:
  if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
    raise ValueError(f"{name} must be a list of strings; got {str(value)[:80]}")
