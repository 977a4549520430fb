"""What is wrong with a tool call, and what it is worth."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from jaxft.checks import in_range
from jaxft.data.tools.calls import ToolCall, parse_call, same_value
from jaxft.signatures import explain_errors

CallError = Literal[
    "unparsable", "unknown tool", "wrong tool", "unknown, redundant and missing parameters",
    "unknown and other wrong parameters", "redundant and missing parameters", "unknown parameters",
    "redundant parameters", "missing parameters", "values", "none"]

# The table of Ye et al. 2024. A call of the right tool with all three faults is worth less than one of a wrong tool.
TL_TRAINING: Mapping[str, float] = MappingProxyType({
    "unparsable": -2.0, "unknown tool": -2.0, "wrong tool": -1.5, "unknown, redundant and missing parameters": -1.8,
    "unknown and other wrong parameters": -1.3, "redundant and missing parameters": -1.0, "unknown parameters": -0.8,
    "redundant parameters": -0.5, "missing parameters": -0.5, "values": -0.25, "none": 1.0})


@explain_errors
def call_error(
    predicted: ToolCall | str | None, gold: ToolCall | str, schemas: Mapping[str, Collection[str]], *,
    same: Callable[[Any, Any], bool] = same_value,
) -> CallError:
  """What is wrong with a call, the tool first, then which parameters it gives, then their values.

  A parameter is unknown where the tool has none of the name, redundant where it has but the right call does without,
  and missing where only the right call gives it.

  >>> schemas = {"get_weather": ["city", "days"], "get_wind": ["city"]}
  >>> gold = "get_weather(city='Oslo')"
  >>> call_error("get_wind(city='Oslo')", gold, schemas), call_error("get_weather(town='Oslo')", gold, schemas)
  ('wrong tool', 'unknown and other wrong parameters')

  Args:
    predicted: a call, or a model's text; None is no call.
    gold: the right call.
    schemas: parameters of each tool of the prompt, by its name.
    same: whether two values are one.

  Returns:
    One of `CallError`, "none" where nothing is wrong.

  Raises:
    ValueError: the right call cannot be parsed, its tool is not among the schemas, or it gives an unknown parameter.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495).
  """
  right = parse_call(gold) if isinstance(gold, str) else gold
  if right is None:
    raise ValueError(f"gold must be a call, name(key=value, ...); got {gold!r:.200}")
  if right.name not in schemas:
    raise ValueError(f"schemas must have the tool {right.name!r} of the right call; got {sorted(schemas)}")
  parameters = set(schemas[right.name])
  if strange := set(right.arguments) - parameters:
    raise ValueError(f"schemas[{right.name!r}] must have the parameters of the right call; it lacks {sorted(strange)}")
  call = parse_call(predicted) if isinstance(predicted, str) else predicted
  if call is None:
    return "unparsable"
  if call.name not in schemas:
    return "unknown tool"
  if call.name != right.name:
    return "wrong tool"
  given, wanted = set(call.arguments), set(right.arguments)
  unknown, redundant, missing = given - parameters, (given & parameters) - wanted, wanted - given
  if unknown and redundant and missing:
    return "unknown, redundant and missing parameters"
  if unknown:
    return "unknown and other wrong parameters" if redundant or missing else "unknown parameters"
  if redundant and missing:
    return "redundant and missing parameters"
  if redundant or missing:
    return "redundant parameters" if redundant else "missing parameters"
  return "none" if all(same(call.arguments[key], right.arguments[key]) for key in wanted) else "values"


@explain_errors
def tool_call_reward(
    predicted: ToolCall | str | None, gold: ToolCall | str, schemas: Mapping[str, Collection[str]], *,
    scale: Mapping[str, float] = TL_TRAINING, same: Callable[[Any, Any], bool] = same_value,
) -> float:
  """The reward of a call by what is wrong with it: 1 for the right one, down to -2 for what is none.

  >>> schemas = {"get_weather": ["city", "days"], "get_wind": ["city"]}
  >>> gold = "get_weather(city='Oslo')"
  >>> [tool_call_reward(text, gold, schemas) for text in (gold, "get_weather(city='Bergen')", "get_rain()", "")]
  [1.0, -0.25, -2.0, -2.0]

  Args:
    predicted, gold, schemas, same: see `call_error`.
    scale: the reward of each of `CallError`, all of them.

  Raises:
    ValueError: a scale that lacks an error or has one that is none, a reward that is not finite, or as of `call_error`.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495).
  """
  if set(scale) != set(get_args(CallError)):
    apart = sorted(set(scale) ^ set(get_args(CallError)))
    raise ValueError(f"scale must have a reward for each of CallError and no other; it differs in {apart}")
  error = call_error(predicted, gold, schemas, same=same)
  in_range(f"scale[{error!r}]", scale[error], "(-inf, inf)")
  return float(scale[error])
