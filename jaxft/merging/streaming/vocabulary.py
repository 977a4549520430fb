"""One vocabulary for models that have different ones: rows of embeddings aligned by the text of their tokens.

A model that lacks a token takes its row from the base, the only model that has it, or the mean of those that do.
"""

import filecmp
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft.formats.safetensors import read_json
from jaxft.merging.kernels.namespace import float32
from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.operands import Operand
from jaxft.merging.streaming.recipe_files.references import Reference, locate
from jaxft.merging.streaming.recipe_files.tokenizer_choice import Token, TokenizerChoice

TOKENIZER = "tokenizer.json"
# Keys of a config that hold ids of tokens.
TOKEN_KEY = re.compile(r"_token_(id|index)$")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT = Token("default")


class Borrowed(NamedTuple):
  """Rows `into` of the output from rows `rows` of a model."""

  into: np.ndarray
  model: Reference
  rows: np.ndarray


class Averaged(NamedTuple):
  """Rows `into` of the output as means over the models that have them: `rows[model]`, -1 where one has not."""

  into: np.ndarray
  rows: Mapping[Reference, np.ndarray]


class Vocabulary(NamedTuple):
  """The vocabulary of the output, and how each model's rows get there.

  Attributes:
    size: rows of the output.
    tokens: rows that are tokens; the others are means of these.
    folder: of the tokenizer that the output's begins with.
    added: tokens that are added to it: `(text, special)`.
    rows: model -> row of each of its tokens in the output, -1 where another's stands there.
    missing: model -> where the rows that it lacks come from.
    bare: tokens that no model has, and that none is listed for.
    moved: id of a token of the first model -> its id in the output, where that is another; None where there is none.
  """

  size: int
  tokens: np.ndarray
  folder: Path
  added: Sequence[tuple[str, bool]]
  rows: Mapping[Reference, np.ndarray]
  missing: Mapping[Reference, Sequence[Borrowed | Averaged]]
  bare: Sequence[str]
  moved: Mapping[int, int | None]

  def tokenizer(self) -> Any:
    """The tokenizer of the output, of the library `tokenizers`."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in self.added])
    return tokenizer


def align_vocabularies(
    choice: TokenizerChoice, models: Mapping[Reference, InputModel], base: Reference | None
) -> Vocabulary:
  """The vocabulary that a configuration asks for.

  Args:
    choice: what it asks for.
    models: all models, the one whose tokenizer comes first at the head.
    base: the base model, if there is one.

  Raises:
    ValueError: a tokenizer or a config is missing, or a listed token is not where it is said to be.
  """
  first = base if base is not None else next(iter(models))
  held = {reference: _tokens(model) for reference, model in models.items()}
  source = choice.source
  folder = locate(source.model, "tokenizer.source") if isinstance(source, Reference) else models[first].folder
  given = _read(folder)
  text_ids, new = dict(given.ids), {}
  for reference in models if choice.source == "union" else ():
    for text in held[reference].ids:
      if text not in text_ids:
        text_ids[text] = max(text_ids.values()) + 1
        new[text] = text in held[reference].special
  for text in choice.tokens:
    if text not in text_ids:
      text_ids[text] = max(text_ids.values()) + 1
      new[text] = False
  # tokenizer.json is written anew only where it has to be; then it takes in what only the files beside it say.
  added = [*((text, text in given.special) for text in given.beside), *new.items()] if new else []
  size = max(text_ids.values()) + 1
  moved = _moved(_read(models[first].folder).ids, text_ids)
  _check_named(models[first], moved, size)
  size += -size % (choice.pad_to_multiple_of or 1)
  ids = np.array(list(text_ids.values()))
  texts = list(text_ids)
  known = {r: np.array([held[r].ids.get(text, -1) for text in texts]) for r in models}
  rows, missing = {}, {}
  for reference in models:
    own = known[reference].copy()
    forced = np.array([text in choice.tokens and choice.tokens[text].force for text in texts])
    own[forced] = -1
    rows[reference] = np.full(size, -1)
    rows[reference][ids] = own
  sources = _sources(texts, ids, choice.tokens, known, held, base)
  for reference in models:
    lacks = rows[reference] < 0
    missing[reference] = [part for part in (_restrict(source, lacks) for source in sources) if len(part.into)]
  tokens = np.zeros(size, bool)
  tokens[ids] = True
  unknown = np.all([own < 0 for own in known.values()], axis=0)
  bare = [texts[i] for i in np.flatnonzero(unknown) if choice.tokens.get(texts[i], _DEFAULT).source == "default"]
  vocabulary = Vocabulary(size, tokens, folder, added, rows, missing, bare, moved)
  if added:
    _check_ids(vocabulary, text_ids)
  return vocabulary


def token_ids(config: Mapping[str, Any]) -> list[int]:
  """The ids of tokens that a config names: `pad_token_id`, a list in `eos_token_id`, those of its parts."""
  out = []
  for key, value in config.items():
    if isinstance(value, dict):
      out += token_ids(value)
    elif TOKEN_KEY.search(key):
      out += [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]
  return out


def _moved(first: Mapping[str, int], output: Mapping[str, int]) -> dict[int, int | None]:
  return {i: output.get(text) for text, i in first.items() if output.get(text) != i}


def _check_named(model: InputModel, moved: Mapping[int, int | None], size: int) -> None:
  """Raises ValueError where a config names a row of its embedding that is no token, and would be cut off."""
  rows = model.vocab_size or 0
  if cut := [i for i in token_ids(model.config) if i not in moved and size <= i < rows]:
    raise ValueError(f"{model.name}: config.json names the token id {cut[0]}, of which its tokenizer knows no token: "
                     f"the vocabulary of the output ends at {size - 1}; "
                     f"add the token to {TOKENIZER}, or take its id out")


def _check_ids(vocabulary: Vocabulary, ids: Mapping[str, int]) -> None:
  """Raises ValueError where the tokenizer, once tokens are added to it, gives one another id than its row."""
  tokenizer = vocabulary.tokenizer()
  if wrong := [text for text, i in ids.items() if tokenizer.token_to_id(text) != i]:
    raise ValueError(f"tokens cannot be added to {vocabulary.folder / TOKENIZER}: {wrong[0]!r} has the row "
                     f"{ids[wrong[0]]} and would get the id {tokenizer.token_to_id(wrong[0])}; its ids have a gap")


def conflicting_tokens(models: Sequence[InputModel]) -> str | None:
  """Says which token has one id in the first model and another in a later one; None where none has.

  Models without `tokenizer.json` are passed over, and files that are the same are not read.
  """
  files = [(model, model.folder / TOKENIZER) for model in models if (model.folder / TOKENIZER).is_file()]
  for model, file in files[1:]:
    first, own = files[0]
    if filecmp.cmp(own, file, shallow=False):
      continue
    ids, others = _read(own.parent).ids, _read(file.parent).ids
    if moved := [text for text, i in ids.items() if others.get(text, i) != i]:
      return (f"{len(moved)} tokens have another id in {model.name} than in {first.name} ({moved[0]!r}: "
              f"{others[moved[0]]} and {ids[moved[0]]})")
  return None


class _Tokens(NamedTuple):
  """The tokens of a model, `text -> id`, those of them that are special, and those not in `tokenizer.json`."""

  ids: dict[str, int]
  special: set[str]
  beside: list[str]


def _read(folder: Path) -> _Tokens:
  from tokenizers import Tokenizer

  file = folder / TOKENIZER
  if not file.is_file():
    raise ValueError(f"{folder} has no {TOKENIZER}, which aligning vocabularies takes")
  try:
    tokenizer = Tokenizer.from_file(str(file))
  except Exception as e:  # the library raises bare Exception
    raise ValueError(f"{file} is not a valid tokenizer: {e}") from None
  special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
  ids = tokenizer.get_vocab(with_added_tokens=True)
  beside = _beside(folder, ids)
  ids |= {text: i for text, (i, _) in beside.items()}
  special |= {text for text, (_, is_special) in beside.items() if is_special}
  return _Tokens(dict(sorted(ids.items(), key=lambda item: item[1])), special, list(beside))


def _beside(folder: Path, ids: Mapping[str, int]) -> dict[str, tuple[int, bool]]:
  """Tokens that only the files beside `tokenizer.json` have, in the order of their ids: `text -> (id, special)`.

  As transformers reads them: those with an id first, then the special tokens that are named without one, each at the
  end of the vocabulary.
  """
  file = folder / "tokenizer_config.json"
  config = read_json(file) if file.is_file() else {}
  maps = [config, *(read_json(f) for f in (folder / "special_tokens_map.json",) if f.is_file())]
  found: dict[str, tuple[int, bool]] = {}
  listed = config.get("added_tokens_decoder")
  for i, token in (listed if isinstance(listed, dict) else {}).items():
    text = token.get("content") if isinstance(token, dict) else None
    if isinstance(text, str) and text not in ids and str(i).isdecimal():
      found[text] = int(i), bool(token.get("special"))
  if (file := folder / "added_tokens.json").is_file():
    found |= {text: (i, False) for text, i in read_json(file).items()
              if text not in ids and text not in found and type(i) is int}
  found = dict(sorted(found.items(), key=lambda item: item[1][0]))
  for text in _special_texts(maps):
    if text not in ids and text not in found:
      found[text] = max([*ids.values(), *(i for i, _ in found.values())], default=-1) + 1, True
  return found


def _special_texts(maps: Sequence[Mapping[str, Any]]) -> list[str]:
  text = lambda token: token.get("content") if isinstance(token, dict) else token
  several = lambda value: value if isinstance(value, list) else []
  named = [text(held.get(key)) for key in _SPECIAL for held in maps]
  named += [text(token) for held in maps for key in ("additional_special_tokens", "extra_special_tokens")
            for token in several(held.get(key))]
  return list(dict.fromkeys(token for token in named if isinstance(token, str) and token))


def _tokens(model: InputModel) -> _Tokens:
  if model.vocab_size is None:
    raise ValueError(f"{model.name}: config.json gives no vocab_size, which aligning vocabularies takes")
  tokens = _read(model.folder)
  # A tokenizer may list tokens for which the model has no embedding.
  return tokens._replace(ids={text: i for text, i in tokens.ids.items() if i < model.vocab_size})


def _sources(
    texts: Sequence[str], ids: np.ndarray, listed: Mapping[str, Token], known: Mapping[Reference, np.ndarray],
    held: Mapping[Reference, _Tokens], base: Reference | None,
) -> list[Borrowed | Averaged]:
  """Where the row of each token of the output comes from in the models that lack it; tokens left out are zero."""
  have = np.stack([rows >= 0 for rows in known.values()])
  count = have.sum(0)
  free = np.array([text not in listed or listed[text].source == "default" for text in texts])
  of_base = known[base] >= 0 if base is not None and base in known else np.zeros(len(texts), bool)
  alone = free & (count == 1)
  shared = free & (count > 1)
  parts: list[Borrowed | Averaged] = []
  for reference, rows in known.items():
    take = alone & (rows >= 0) | (shared & of_base if reference == base else np.zeros(len(texts), bool))
    parts.append(Borrowed(ids[take], reference, rows[take]))
  mean = shared & ~of_base
  parts.append(Averaged(ids[mean], {reference: rows[mean] for reference, rows in known.items()}))
  place = {text: i for i, text in enumerate(texts)}
  for text, token in listed.items():
    if isinstance(token.source, Reference):
      parts.append(_listed(text, token, token.source, int(ids[place[text]]), held))
  return parts


def _listed(text: str, token: Token, source: Reference, into: int, held: Mapping[Reference, _Tokens]) -> Borrowed:
  where = f"tokenizer.tokens[{text!r}]"
  if source not in held:
    raise ValueError(f"{where}: {source} is not one of the models, {', '.join(map(str, held))}")
  ids = held[source].ids
  row = token.token if isinstance(token.token, int) else ids.get(text if token.token is None else token.token, -1)
  if not 0 <= row <= max(ids.values()):
    raise ValueError(f"{where}: {source} has no token {text if token.token is None else token.token!r}")
  return Borrowed(np.array([into]), source, np.array([row]))


def _restrict(part: Borrowed | Averaged, wanted: np.ndarray) -> Any:
  keep = wanted[part.into]
  if isinstance(part, Borrowed):
    return part._replace(into=part.into[keep], rows=part.rows[keep])
  return Averaged(part.into[keep], {reference: rows[keep] for reference, rows in part.rows.items()})


class Aligned:
  """A tensor whose rows are tokens, in the order of the output's vocabulary: read in float32, of the dtype it has."""

  def __init__(self, own: Reference, operands: Mapping[Reference, Operand], vocabulary: Vocabulary):
    """`operands`: the tensor in each model; `own`: the model whose it is."""
    self._own, self._operands, self._vocabulary = own, operands, vocabulary
    operand = operands[own]
    self.shape, self.dtype = (vocabulary.size, *operand.shape[1:]), operand.dtype
    self.stored = operand.stored
    self.held = operand.stored + int(np.prod(self.shape, dtype=object)) * 4
    self.position = operand.position

  def array(self) -> np.ndarray:
    out = np.zeros(self.shape, np.float32)
    rows = self._vocabulary.rows[self._own]
    _copy_rows(out, np.flatnonzero(rows >= 0), self._operands[self._own], rows[rows >= 0])
    for part in self._vocabulary.missing[self._own]:
      if isinstance(part, Borrowed):
        _copy_rows(out, part.into, self._operands[part.model], part.rows)
        continue
      count = np.zeros((len(part.into), *(1,) * (out.ndim - 1)), np.float32)
      for model, rows in part.rows.items():
        has = rows >= 0
        out[part.into[has]] += float32(self._operands[model].array()[rows[has]])
        count[has] += 1
      out[part.into] /= count
    if not self._vocabulary.tokens.all():
      out[~self._vocabulary.tokens] = out[self._vocabulary.tokens].mean(0)
    return out

  def prefetch(self) -> None:
    self._operands[self._own].prefetch()

  def release(self) -> None:
    for operand in self._operands.values():
      operand.release()


def _copy_rows(out: np.ndarray, into: np.ndarray, operand: Operand, rows: np.ndarray) -> None:
  array = operand.array()
  for start in range(0, len(into), 1 << 12):
    out[into[start:start + (1 << 12)]] = float32(array[rows[start:start + (1 << 12)]])
