"""The modules of a Hugging Face model, the leaves here that hold their weights, and how PEFT names its targets."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.checks import nearest
from jaxft.formats.families import family_of
from jaxft.formats.names import template_of
from jaxft.tree.depth import layer_of
from jaxft.tree.paths import Tree, leaves_with_paths

# Modules that the other side may have beside those of our name map; a short target must not match them by accident.
ELSEWHERE = ("lm_head", "pooler.dense")


class Place(NamedTuple):
  """One parameter of one module, and where it is here.

  Attributes:
    module: its module there, such as `model.layers.0.self_attn.q_proj`.
    parameter: "weight" or "bias".
    path: the leaf here, `layers/attention/query/kernel`.
    row: of the layer within the leaf, None where the leaf holds one layer.
    shape: here, of one layer.
  """

  module: str
  parameter: str
  path: str
  row: int | None
  shape: tuple[int, ...]

  @property
  def embedding(self) -> bool:
    return self.path.endswith("/embedding")

  @property
  def matrix(self) -> bool:
    return self.parameter == "weight" and len(self.shape) == 2


def places(params: Tree, config: Any) -> list[Place]:
  """Every place of a params tree that has a name in Hugging Face checkpoints, layers one by one."""
  rules = {rule.path: rule for rule in family_of(config).tensors(config).rules}
  out = []
  for path, leaf in leaves_with_paths(params):
    rule = rules.get(template_of(path))
    if rule is None or leaf is None:
      continue
    where = layer_of(path, leaf) if rule.layered else None
    for row, layer in enumerate(where.tolist()) if isinstance(where, np.ndarray) else [(None, where)]:
      module, _, parameter = rule.name.format(layer=layer).rpartition(".")
      out.append(Place(module, parameter, path, row, tuple(leaf.shape if row is None else leaf.shape[1:])))
  return out


def matches(name: str, targets: str | Sequence[str]) -> bool:
  """PEFT's rule: a string is a regex over the whole name; in a list, names of modules or their ends after a dot."""
  if isinstance(targets, str):
    return re.fullmatch(targets, name) is not None
  return any(name == target or name.endswith(f".{target}") for target in targets)


def targeted(settings: Mapping[str, Any], candidates: Sequence[Place]) -> list[Place]:
  """The places whose modules an `adapter_config.json` names.

  Raises:
    ValueError: a target that the model lacks.
  """
  targets = settings.get("target_modules")
  if not targets:
    raise ValueError("adapter_config.json must name its target_modules; got none")
  names = sorted({place.module for place in candidates})
  if targets == "all-linear":
    chosen = [p for p in candidates if not p.embedding and p.module != "lm_head"]
  else:
    lacking = [t for t in ([targets] if isinstance(targets, str) else targets)
               if not any(matches(name, t if isinstance(targets, str) else [t]) for name in names)]
    if lacking:
      known = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
      tied = "; this model ties its head to the embedding, and cannot adapt it apart" if "lm_head" in lacking else ""
      names = ", ".join(map(repr, lacking))
      raise ValueError(f"target_modules name {names}, which the model lacks; {nearest(lacking[0], known)}{tied}")
    chosen = [p for p in candidates if matches(p.module, targets)]
  layers, excluded = settings.get("layers_to_transform"), settings.get("exclude_modules")
  if excluded:
    chosen = [p for p in chosen if not matches(p.module, excluded)]
  if saved := settings.get("modules_to_save"):
    chosen = [p for p in chosen if not any(re.match(rf"(^|.*\.){m}($|\..*)", p.module) for m in saved)]
  if layers is not None and layers != []:
    layers, stacks = [layers] if isinstance(layers, int) else layers, settings.get("layers_pattern") or [r"[^.]*"]
    ways = [rf"(?:^|.*?\.){stack}\.(\d+)\." for stack in ([stacks] if isinstance(stacks, str) else stacks)]
    number = lambda p: next((found for way in ways if (found := re.match(way, p.module))), None)
    chosen = [p for p in chosen if (found := number(p)) and int(found[1]) in layers]
  if not chosen:
    raise ValueError(f"target_modules {targets!r} and its exceptions leave no module of the model")
  return chosen


def saved_whole(name: str, saved: Sequence[str]) -> bool:
  """PEFT's rule for `modules_to_save`: any ending, also one within a word, so that "norm" is "input_layernorm" too."""
  return any(name.endswith(ending) for ending in saved)


def shortest(chosen: Iterable[str], candidates: Iterable[str], rule: Callable[..., bool] = matches) -> list[str]:
  """The shortest list of name endings that matches the chosen modules and, of all candidates, no other."""
  chosen, everything = set(chosen), {*candidates, *ELSEWHERE}
  out = set()
  for name in chosen:
    parts = name.split(".")
    endings = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    out.add(next(end for end in endings if all(n in chosen for n in everything if rule(n, [end]))))
  return sorted(out)


def of_module(settings: Mapping[str, Any], patterns: Mapping[str, str], module: str) -> dict[str, Any]:
  """The settings of one module: those of the file, with what `rank_pattern` and its like say of it."""
  out = dict(settings)
  for name, pattern in patterns.items():
    for key, value in (settings.get(pattern) or {}).items():
      if re.match(rf"(.*\.)?({key})$", module):
        out[name] = value
        break
  return out
