"""The tokenizer that a configuration asks for."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxft.merging.streaming.recipe_files.documents import keys
from jaxft.merging.streaming.recipe_files.references import Reference, parse_reference


@dataclasses.dataclass(frozen=True)
class Token:
  """Where the embedding of one token comes from in the models that lack it, or with `force` in all of them.

  Attributes:
    source: a model; `zero`; or `default`, as for tokens that are not listed.
    token: the model's own token, or its id; None takes the token itself.
    force: whether models that have the token take this embedding too.
  """

  source: Reference | Literal["zero", "default"]
  token: str | int | None = None
  force: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerChoice:
  """The output's tokenizer."""

  source: Literal["union", "base"] | Reference
  tokens: Mapping[str, Token] = dataclasses.field(default_factory=dict)
  pad_to_multiple_of: int | None = None


def tokenizer_choice(document: Mapping[str, Any]) -> TokenizerChoice | None:
  """What a recipe says of its tokenizer, in `tokenizer` or `tokenizer_source`.

  Raises:
    ValueError: something in it is unknown or malformed; names the key.
  """
  if document.get("tokenizer") and document.get("tokenizer_source"):
    raise ValueError("tokenizer and tokenizer_source exclude each other; got both")
  if (source := document.get("tokenizer_source")) is not None:
    return TokenizerChoice(_tokenizer_source(source, "tokenizer_source"))
  if (value := document.get("tokenizer")) is None:
    return None
  keys("tokenizer", value, ("source", "tokens", "pad_to_multiple_of"))
  tokens = {}
  for text, entry in (value.get("tokens") or {}).items():
    where = f"tokenizer.tokens[{text!r}]"
    keys(where, entry, ("source", "force"))
    force = entry.get("force", False)
    if not isinstance(force, bool):
      raise ValueError(f"{where}.force must be true or false; got {force!r}")
    tokens[str(text)] = _token(entry.get("source"), force, where)
  pad = value.get("pad_to_multiple_of")
  if pad is not None and (type(pad) is not int or pad < 1):
    raise ValueError(f"tokenizer.pad_to_multiple_of must be a positive integer; got {pad!r}")
  return TokenizerChoice(_tokenizer_source(value.get("source", "union"), "tokenizer.source"), tokens, pad)


def _token(source: Any, force: bool, where: str) -> Token:
  if source is None:
    return Token("default", None, force)
  if not isinstance(source, dict) or "kind" not in source:
    return Token(parse_reference(source, f"{where}.source"), None, force)
  keys(f"{where}.source", source, ("kind", "model", "token", "token_id"))
  if source["kind"] == "zero":
    return Token("zero", None, force)
  if source["kind"] != "model_token":
    raise ValueError(f"{where}.source.kind must be zero or model_token; got {source['kind']!r}")
  own = [source[key] for key, kind in (("token", str), ("token_id", int)) if isinstance(source.get(key), kind)]
  if len(own) != 1 or "model" not in source:
    raise ValueError(f"{where}.source must have a model and either token or token_id")
  return Token(parse_reference(source["model"], f"{where}.source.model"), own[0], force)


def _tokenizer_source(value: Any, where: str) -> Literal["union", "base"] | Reference:
  return value if value in ("union", "base") else parse_reference(value, where)
