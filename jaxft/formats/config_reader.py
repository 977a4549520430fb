"""Reading a `config.json` key by key: what is read, what is checked, what is known to be harmless, and nothing else."""

from collections.abc import Mapping
from typing import Any

# Bookkeeping, training-time and generation-time settings.
HARMLESS = frozenset("""
  _name_or_path architectures model_type transformers_version torch_dtype dtype use_cache initializer_range
  hidden_dropout_prob attention_probs_dropout_prob attention_dropout classifier_dropout gradient_checkpointing
  pretraining_tp output_attentions output_hidden_states return_dict chunk_size_feed_forward id2label label2id
  problem_type finetuning_task unk_token_id sep_token_id cls_token_id is_llama_config
  transformers.js_config _attn_implementation max_length min_length temperature top_k top_p do_sample num_beams
  repetition_penalty length_penalty num_return_sequences diversity_penalty num_beam_groups typical_p
""".split())

NO = (None, False)


class Reader:
  """Reads keys with their checks, remembers which were read, and gathers what is wrong."""

  def __init__(self, config: Mapping[str, Any]):
    self.config = config
    self.seen: set[str] = set(HARMLESS)
    self.problems: list[str] = []

  def __call__(self, key: str, kind: type, default: Any = None) -> Any:
    self.seen.add(key)
    value = self.config.get(key)
    if value is None and default is not None:
      return default
    if kind is bool and isinstance(value, bool):
      return value
    # bool counts as int in Python; 1e12 bounds what a hostile file can make the shapes multiply to.
    number = (int, float) if kind is float else int
    if kind is not bool and isinstance(value, number) and not isinstance(value, bool) and 0 < value < 10**12:
      return kind(value)
    self.problems.append(f"{key} must be a {'boolean' if kind is bool else f'positive {kind.__name__}'}; got {value!r}")
    return default if default is not None else kind(1)

  def token(self, key: str) -> int | None:
    """A token id; the first where a config lists several."""
    self.seen.add(key)
    value = self.config.get(key)
    if isinstance(value, list) and value:
      value = value[0]
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= -1):
      return None if value == -1 else value
    self.problems.append(f"{key} must be a token id, a list of them, or null; got {value!r}")
    return None

  def special_tokens(self, vocab_size: int) -> dict[str, int | None]:
    """The ids of the special tokens, which must be rows of the embedding."""
    out = {f"{role}_id": self.token(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    for name, token in out.items():
      if token is not None and token >= vocab_size:
        self.problems.append(f"{name.replace('_id', '_token_id')} must be below vocab_size {vocab_size}; got {token}")
        out[name] = None
    return out

  def check(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in allowed.items():
      self.seen.add(key)
      if key in self.config and self.config[key] not in values:
        self.refuse(key, f"supported: {', '.join(map(repr, values))}")

  def refuse(self, key: str, why: str) -> None:
    self.problems.append(f"{key} = {self.config.get(key)!r} is not supported; {why}")

  def finish(self, file: str = "config.json", of: str = "the forward pass as it is") -> None:
    """Raises ValueError of all that is wrong in a file, and of keys that may not leave `of`."""
    for key in sorted(set(self.config) - self.seen):
      if self.config[key] not in (None, False, 0, "", [], {}):
        self.refuse(key, f"it is not known to leave {of}")
    if self.problems:
      raise ValueError(f"{file}: " + "; ".join(self.problems))
