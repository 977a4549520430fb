"""The models that go into a merge: their tensors, their config, and an adapter on them where one is named."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.merging.streaming.adapted import with_adapter
from jaxft.merging.streaming.adapters import read_adapter
from jaxft.merging.streaming.operands import Operand, Stored
from jaxft.merging.streaming.recipe_files.references import Reference, locate


class InputModel:
  """A model to read from.

  Attributes:
    name: as the configuration names it.
    folder: of its config and tokenizer.
    stem: of its files of tensors, `model` for `model-00001-of-00002.safetensors`.
    operands: its tensors by name.
    config: what is in `config.json`; empty where there is none.
  """

  def __init__(
      self, name: str, folder: Path, operands: Mapping[str, Operand], *, stem: str = "model",
      config: Mapping[str, Any] | None = None,
  ):
    self.name, self.folder, self.stem, self.operands = name, folder, stem, operands
    file = folder / "config.json"
    self.config = dict(config) if config is not None else read_json(file) if file.is_file() else {}

  @property
  def vocab_size(self) -> int | None:
    """Rows of the embedding, by the config."""
    for config in (self.config, self.config.get("text_config")):
      if isinstance(config, dict) and isinstance(config.get("vocab_size"), int):
        return config["vocab_size"]
    return None


def open_model(reference: Reference, path: Path | None = None) -> InputModel:
  """Opens the checkpoint of a reference, and its adapter; reads headers only.

  Args:
    reference: the reference.
    path: where its model lies; None looks for it.

  Raises:
    ValueError: it does not exist, is pickled or corrupt, or the adapter is of a kind that is not added here.
  """
  path = locate(reference.model, "model") if path is None else path
  try:
    checkpoint = open_checkpoint(path)
  except ValueError as e:
    raise ValueError(f"model {reference.model}: {e}") from None
  operands: dict[str, Operand] = {name: Stored(checkpoint, name) for name in checkpoint.tensors}
  folder = path if path.is_dir() else path.parent
  stems = {_stem(info.file.name) for info in checkpoint.tensors.values()}
  stem = stems.pop() if len(stems) == 1 else "model"
  return adapted(InputModel(str(reference), folder, operands, stem=stem), reference)


def adapted(model: InputModel, reference: Reference) -> InputModel:
  """A reference's model with its adapter added, if it has one.

  Raises:
    ValueError: the adapter is of a kind that is not added here, or does not fit the model.
  """
  if reference.adapter is None:
    return model
  adapter = read_adapter(locate(reference.adapter, "adapter"))
  try:
    operands, config = with_adapter(model.operands, model.config, adapter, reference.model)
  except ValueError as e:
    raise ValueError(f"adapter {reference.adapter}: {e}") from None
  return InputModel(model.name, model.folder, operands, stem=model.stem, config=config)


def _stem(file: str) -> str:
  return re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", file)
