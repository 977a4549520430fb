"""mergekit's configuration format: YAML to recipes, with every key accounted for.

A recipe is one merge. Whether the file says `models`, `slices` or `modules`, it becomes modules of slices of sources.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.checks import check_path
from jaxft.merging.kernels.methods import METHODS
from jaxft.merging.streaming.recipe_files.documents import entries, hint, keys, mapping
from jaxft.merging.streaming.recipe_files.references import Reference, parse_reference
from jaxft.merging.streaming.recipe_files.settings import Settings, check_setting
from jaxft.merging.streaming.recipe_files.tokenizer_choice import TokenizerChoice, tokenizer_choice
from jaxft.merging.streaming.recipe_files.yaml_documents import read_yaml

DTYPES = ("float32", "float16", "bfloat16")

_RECIPE = (
    "name", "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer", "tokenizer_source", "chat_template",
)
_PARAMETERS = {name for method in METHODS.values() for name in (*method.per_model, *method.parameters)}

@dataclasses.dataclass(frozen=True)
class Source:
  """A model in a slice; `layers` is the range `[first, last)` that it gives, None for all of them."""

  model: Reference
  layers: tuple[int, int] | None = None
  parameters: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Slice:
  """Layers of the output, made from as many layers of each source."""

  sources: tuple[Source, ...]
  base: Reference | None = None
  parameters: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Module:
  """The tensors whose names begin with a prefix; "" stands for all that no other module has."""

  prefix: str
  slices: tuple[Slice, ...]
  parameters: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One merge.

  Attributes:
    name: by which later recipes refer to its result.
    method: of `jaxft.merging.kernels.methods.METHODS`.
    base: the base model.
    modules: what is merged.
    parameters: of everything.
    dtype: of the output; None keeps the inputs'.
    tokenizer: None copies that of the base, or of the first model.
    chat_template: None leaves it as it is.
    notes: what the reader of the configuration should know.
    document: as it was read.
  """

  name: str | None
  method: str
  base: Reference | None
  modules: tuple[Module, ...]
  parameters: Settings
  dtype: str | None
  tokenizer: TokenizerChoice | None
  chat_template: str | None
  notes: tuple[str, ...]
  document: Mapping[str, Any]

  @property
  def models(self) -> list[Reference]:
    """All models once, the base first, the others in the order in which they occur."""
    named = [s.model for module in self.modules for piece in module.slices for s in piece.sources]
    bases = [self.base, *(piece.base for module in self.modules for piece in module.slices)]
    return list(dict.fromkeys(model for model in [*bases, *named] if model is not None))


def load_recipes(path: str | os.PathLike) -> list[Recipe]:
  """The recipes of a file, in its order.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
  ...   print("merge_method: slerp", "base_model: a", "models: [{model: b}]", sep=chr(10), file=file, flush=True)
  ...   [(recipe.method, [str(model) for model in recipe.models]) for recipe in load_recipes(file.name)]
  [('slerp', ['a', 'b'])]

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not YAML, or something in it is unknown or malformed; names the file and the key.
  """
  check_path("path", path)
  try:
    return parse_recipes(Path(path).read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None


def parse_recipes(text: str) -> list[Recipe]:
  """`load_recipes` from the text.

  >>> (recipe,) = parse_recipes("{merge_method: ties, base_model: base, models: [{model: a}, {model: b}]}")
  >>> recipe.method, [str(model) for model in recipe.models]
  ('ties', ['base', 'a', 'b'])

  Raises:
    ValueError: as `load_recipes`, without the name of a file.
  """
  if not isinstance(text, str):
    raise TypeError(f"text must be a str; got {text!r:.60}")
  documents = [document for document in read_yaml(text) if document is not None]
  if not documents:
    raise ValueError("text must hold a configuration: the configuration is empty")
  recipes = [_recipe(document) for document in documents]
  names = [recipe.name for recipe in recipes]
  if repeated := [name for name in names if names.count(name) > 1]:
    called = "no name" if repeated[0] is None else f"the name {repeated[0]!r}"
    raise ValueError(f"{names.count(repeated[0])} documents have {called}; each but the last needs one of its own")
  return recipes


def _recipe(document: Any) -> Recipe:
  keys("the configuration", document, _RECIPE, required=("merge_method",))
  method, notes = document["merge_method"], []
  if method not in METHODS:
    raise ValueError(f"merge_method must be one of {', '.join(METHODS)}; got {method!r}")
  given = [key for key in ("models", "slices", "modules") if document.get(key)]
  if len(given) != 1:
    raise ValueError(f"exactly one of models, slices and modules must be given; got {' and '.join(given) or 'none'}")
  reader = _Reader(method, notes)
  base = _optional(document, "base_model", parse_reference)
  name = document.get("name")
  if name is not None and (not isinstance(name, str) or not name or "/" in name or name.startswith(".")):
    raise ValueError(f"name must be a plain word; got {name!r}")
  if given == ["modules"]:
    modules = reader.modules(document["modules"], base)
  else:
    modules = (Module("", reader.slices_of(document, base, "")),)
  if base is None and METHODS[method].base == "required" and not all(p.base for m in modules for p in m.slices):
    raise ValueError(f"merge_method {method} needs a base_model; got none")
  dtype, out_dtype = (_dtype(document.get(key), key) for key in ("dtype", "out_dtype"))
  return Recipe(
      name, method, base, modules, reader.parameters(document.get("parameters"), "parameters"), out_dtype or dtype,
      tokenizer_choice(document), _text(document, "chat_template"), tuple(dict.fromkeys(notes)), document)


class _Reader:
  """The nested parts of one recipe; `notes` collects what is accepted and not used."""

  def __init__(self, method: str, notes: list[str]):
    self.method, self.notes = method, notes

  def modules(self, value: Any, base: Reference | None) -> tuple[Module, ...]:
    mapping("modules", value)
    out = []
    for name, module in value.items():
      where = f"modules.{name}"
      keys(where, module, ("slices", "models", "parameters"))
      if bool(module.get("slices")) == bool(module.get("models")):
        raise ValueError(f"{where} must have either models or slices")
      prefix = "" if name == "default" else str(name)
      slices = self.slices_of(module, base, where + ".")
      out.append(Module(prefix, slices, self.parameters(module.get("parameters"), f"{where}.parameters")))
    return tuple(out)

  def slices_of(self, holder: Mapping[str, Any], base: Reference | None, where: str) -> tuple[Slice, ...]:
    if holder.get("models"):
      sources = [self.source(entry, f"{where}models[{i}]", ("model", "parameters"))
                 for i, entry in enumerate(entries(f"{where}models", holder["models"]))]
      if base is not None and base not in [s.model for s in sources]:
        sources.append(Source(base))
      return (self.slice(tuple(sources), base, {}, f"{where}models"),)
    out = []
    for i, entry in enumerate(entries(f"{where}slices", holder["slices"])):
      here = f"{where}slices[{i}]"
      keys(here, entry, ("sources", "base_model", "parameters", "residual_weight"), required=("sources",))
      if entry.get("residual_weight") is not None:
        raise ValueError(f"{here}.residual_weight is not supported; mergekit reads and ignores it")
      sources = tuple(self.source(source, f"{here}.sources[{j}]", ("model", "layer_range", "parameters"))
                      for j, source in enumerate(entries(f"{here}.sources", entry["sources"])))
      own = _optional(entry, "base_model", parse_reference, f"{here}.") or base
      out.append(self.slice(sources, own, self.parameters(entry.get("parameters"), f"{here}.parameters"), here))
    return tuple(out)

  def slice(self, sources: tuple[Source, ...], base: Reference | None, parameters: Settings, where: str) -> Slice:
    models = [s.model for s in sources]
    if twice := [m for m in models if models.count(m) > 1]:
      raise ValueError(f"{where} names {twice[0]} more than once")
    if base is not None and base not in models:
      if METHODS[self.method].base != "ignored":
        raise ValueError(f"{where} lacks the base_model {base}; name it among the sources, with its layer_range")
      base = None
    lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers is not None}
    if len(lengths) > 1:
      raise ValueError(f"{where}: the layer_range of all sources must have one length; got {sorted(lengths)}")
    return Slice(sources, base, parameters)

  def source(self, entry: Any, where: str, known: Sequence[str]) -> Source:
    keys(where, entry, known, required=tuple(k for k in known if k != "parameters"))
    layers = None
    if "layer_range" in known:
      layers = entry["layer_range"]
      whole = isinstance(layers, list) and len(layers) == 2 and all(type(x) is int for x in layers)
      if not whole or not 0 <= layers[0] < layers[1]:
        raise ValueError(f"{where}.layer_range must be [first, last) with 0 <= first < last; got {layers!r}")
      layers = tuple(layers)
    parameters = self.parameters(entry.get("parameters"), f"{where}.parameters")
    for name in sorted(set(parameters) - set(METHODS[self.method].per_model)):
      if name in METHODS[self.method].parameters:
        self.notes.append(
            f"{where}.parameters.{name} is not read: {name} belongs to the whole merge, in its parameters")
    return Source(parse_reference(entry["model"], f"{where}.model"), layers, parameters)

  def parameters(self, value: Any, where: str) -> Settings:
    if value is None:
      return {}
    mapping(where, value)
    method = METHODS[self.method]
    known = {*method.per_model, *method.parameters}
    for name, setting in value.items():
      if name not in _PARAMETERS:
        raise ValueError(f"{where} has the unknown parameter {name!r}; {self.method} has {', '.join(sorted(known))}"
                         f"{hint(name)}")
      if name not in known:
        self.notes.append(f"{where}.{name} has no effect: {self.method} has {', '.join(sorted(known)) or 'none'}")
      check_setting(setting, f"{where}.{name}")
    return value


def _dtype(value: Any, key: str) -> str | None:
  if value is not None and value not in DTYPES:
    raise ValueError(f"{key} must be one of {', '.join(DTYPES)}; got {value!r}")
  return value


def _text(document: Mapping[str, Any], key: str) -> str | None:
  value = document.get(key)
  if value is not None and not isinstance(value, str):
    raise ValueError(f"{key} must be text; got {value!r}")
  return value or None


def _optional(holder: Mapping[str, Any], key: str, parse: Any, where: str = "") -> Any:
  return None if holder.get(key) is None else parse(holder[key], f"{where}{key}")
