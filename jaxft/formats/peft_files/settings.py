"""Whether an `adapter_config.json` is read exactly: every key known, every value of its kind, every pattern safe.

A key that is not known may ask for what would load without complaint and give other numbers. Every key is therefore
one that is read, one that must be off, or one known to leave the numbers alone; any other key that is set is refused
by name.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxft.checks import nearest
from jaxft.formats.peft_files.method import Method

# What every type reads.
_READ = frozenset("""
  peft_type target_modules exclude_modules modules_to_save layers_to_transform layers_pattern bias ensure_weight_tying
""".split())
# Bookkeeping, inits whose result is in the file, and what acts in training alone.
_INERT = frozenset("""
  task_type base_model_name_or_path auto_mapping peft_version revision inference_mode runtime_config
  init_weights init_lora_weights init_ia3_weights d_initial init_vector_bank_bound init_logits_std mini_r delora_lambda
  lambda_pattern projection_prng_key save_projection sparse very_sparse mask_type random_seed save_only_topk_weights
  eva_config corda_config lora_ga_config loftq_config megatron_config megatron_core qalora_group_size eps
  lora_dropout vera_dropout boft_dropout vblora_dropout miss_dropout randlora_dropout hira_dropout
  rank_dropout module_dropout rank_dropout_scale use_effective_conv2d decompose_both
  target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step
""".split())
# What a pattern may have of these to be matched at once: so few cannot take long against a module's name.
_QUICK = 3
_SECONDS = 10.0
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
  for name in names:
    re.fullmatch(pattern, name)
"""


def check_settings(settings: Mapping[str, Any], method: Method, modules: Sequence[str]) -> None:
  """Raises ValueError for settings that are not read exactly; all unknown keys are named.

  Args:
    settings: of the file.
    method: the row of its type.
    modules: names of the model's modules, against which patterns are tried: one that takes too long is refused.
  """
  if on := [name for name in method.refuses if settings.get(name)]:
    raise ValueError(f"{on[0]}={settings[on[0]]!r} is a variant that is not computed here")
  known = _READ | _INERT | {*method.defaults, *method.patterns.values(), *method.fixed, *method.refuses, *method.reads}
  if strange := sorted(name for name in settings if name not in known and not _off(settings[name])):
    raise ValueError(
        f"{strange[0]}={settings[strange[0]]!r} is not known to leave the numbers as they are; unknown keys: "
        f"{', '.join(strange)}; {nearest(strange[0], sorted(known))}")
  for name, default in method.defaults.items():
    if settings.get(name) is not None:
      _check_value(name, settings[name], default)
  for name in ("target_modules", "exclude_modules", "feedforward_modules"):
    _check_names(name, settings.get(name), patterns=True)
  _check_names("modules_to_save", settings.get("modules_to_save"), patterns=False)
  _check_layers(settings)
  for setting, name in method.patterns.items():
    _check_pattern(name, settings.get(name), method.defaults[setting])
  bias = settings.get("bias")
  if bias not in (None, "none", "all") and not (isinstance(bias, str) and bias.endswith("_only")):
    raise ValueError(f"bias must be 'none', 'all' or that of the adapted modules, such as 'lora_only'; got {bias!r}")
  _check_patterns(_expressions(settings, method), modules)


def check_sizes(settings: Mapping[str, Any], method: Method, largest: int) -> None:
  """Raises ValueError for a size that no tensor of the file has, before anything of that size is made."""
  for name in method.sizes:
    if settings[name] > largest:
      raise ValueError(f"{name}={settings[name]} asks for more than the file holds, whose longest axis is {largest}")


def are_rows(value: Any) -> bool:
  """Whether a setting is a list of indices into an embedding."""
  return isinstance(value, list) and all(type(row) is int and 0 <= row < 2**31 for row in value)


def _off(value: Any) -> bool:
  return value is None or value is False or value in (0, "", [], {})


def _check_value(name: str, value: Any, default: Any) -> None:
  number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  whole = number and value == int(value)
  # PEFT writes alphas as integers, and reads any number; whatever counts something is whole.
  kinds = {bool: (isinstance(value, bool), "true or false"), str: (isinstance(value, str), "text"),
           float: (number, "a finite number"),
           int: (number if "alpha" in name else whole, "a finite number" if "alpha" in name else "an integer")}
  good, what = kinds.get(type(default), (True, ""))
  if not good:
    raise ValueError(f"{name} must be {what}; got {value!r}")


def _check_names(name: str, value: Any, *, patterns: bool) -> None:
  if value is None or (patterns and isinstance(value, str)):
    return
  kind = "a pattern or a list of names" if patterns else "a list of names"
  if not isinstance(value, list) or not all(isinstance(x, str) and x for x in value):
    raise ValueError(f"{name} must be {kind}; got {value!r}")
  # PEFT splices these into a pattern of its own.
  if not patterns and (strange := [x for x in value if not re.fullmatch(r"[\w.]+", x)]):
    raise ValueError(f"{name} must be {kind}, with letters, digits, underscores and dots; got {strange[0]!r}")


def _check_layers(settings: Mapping[str, Any]) -> None:
  layers, stacks = settings.get("layers_to_transform"), settings.get("layers_pattern")
  index = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0
  if not (layers is None or index(layers) or (isinstance(layers, list) and all(map(index, layers)))):
    raise ValueError(f"layers_to_transform must be the index of a layer, or a list of them; got {layers!r}")
  names = [stacks] if isinstance(stacks, str) else stacks
  if stacks and not (isinstance(names, list) and all(isinstance(x, str) and re.fullmatch(r"[\w.]+", x) for x in names)):
    raise ValueError(f"layers_pattern must be the name of a stack of layers, or a list of them; got {stacks!r}")


def _check_pattern(name: str, value: Any, default: Any) -> None:
  if value is None:
    return
  if not isinstance(value, dict):
    raise ValueError(f"{name} must map names of modules to numbers; got {value!r}")
  for key, x in value.items():
    _check_value(f"{name}[{key!r}]", x, default)


def _expressions(settings: Mapping[str, Any], method: Method) -> Iterator[tuple[str, str, str]]:
  """`(where, pattern, as it is matched against a whole name)` of every regular expression in the settings."""
  for name in ("target_modules", "exclude_modules", "feedforward_modules"):
    if isinstance(settings.get(name), str):
      yield name, settings[name], settings[name]
  for name in method.patterns.values():
    for key in settings.get(name) or {}:
      yield f"{name}[{key!r}]", key, rf"(.*\.)?({key})"


def _check_patterns(expressions: Iterable[tuple[str, str, str]], modules: Sequence[str]) -> None:
  slow = {}
  for where, pattern, whole in expressions:
    try:
      re.compile(whole)
    except (re.error, RecursionError, OverflowError) as e:
      raise ValueError(f"{where} is not a valid pattern: {str(e)[:200]}") from None
    if sum(map(pattern.count, "*+?{|")) > _QUICK:
      slow[where] = whole
  if not slow:
    return
  # The standard library's matcher has no limit, and a pattern can make it run for ever: it is tried in a process that
  # can be ended. What is quick there is quick here.
  try:
    subprocess.run([sys.executable, "-I", "-S", "-c", _MATCH], input=json.dumps([list(slow.values()), list(modules)]),
                   text=True, timeout=_SECONDS, check=True, capture_output=True)
  except subprocess.TimeoutExpired:
    raise ValueError(f"{', '.join(slow)} took more than {_SECONDS:g} seconds to match against the names of the model's "
                     "modules; list the names instead") from None
