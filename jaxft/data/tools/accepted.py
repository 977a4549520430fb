"""Whether calls are among the answers that the Berkeley Function Calling Leaderboard accepts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.data.tools.calls import ToolCall, parse_calls
from jaxft.signatures import explain_errors

Answer = Mapping[str, Mapping[str, Sequence[Any]]]  # {tool: {parameter: accepted values}}

_TYPES = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
          "any": str}


@explain_errors
def accepted_calls(
    calls: Sequence[ToolCall] | str | None, answers: Sequence[Answer], functions: Sequence[Mapping[str, Any]]
) -> bool:
  """Whether calls are the accepted ones, in any order, each by its tool, its parameters and their types and values.

  A parameter may be left out where "" is among its accepted values. Strings are compared without case, spaces and the
  signs `,./-_*^`; an int serves where a float is asked for, and a bool is no int. Where no answer is accepted, because
  no function serves, any call is wrong and anything else is right.

  >>> function = {"name": "get_rain", "parameters": {"type": "dict", "required": ["city"], "properties": {
  ...     "city": {"type": "string"}, "days": {"type": "integer"}}}}
  >>> answers = [{"get_rain": {"city": ["Oslo", "Oslo, Norway"], "days": ["", 1]}}]
  >>> [accepted_calls(text, answers, [function]) for text in (
  ...     "get_rain(city='oslo norway')", "[get_rain(city='Oslo', days=1)]", "get_rain(city='Oslo', days=2)", "?")]
  [True, True, False, False]

  Args:
    calls: calls, or a model's text; None is no call.
    answers: accepted values of each call, as `answers` of `bfcl/<category>`.
    functions: those of the prompt, with name and parameters.

  Raises:
    ValueError: an answer that is not of one tool, or of one that is not among the functions.

  Source: the rules of `ast_checker` in bfcl-eval 2026.3.23, for Python; Patil et al. 2025, The Berkeley Function
  Calling Leaderboard. There each answer takes the first call that fits it, so that the order of the calls can matter
  where a call fits two; here any assignment will do.
  """
  known = {function["name"]: function["parameters"] for function in functions}
  for answer in answers:
    if len(answer) != 1 or next(iter(answer)) not in known:
      raise ValueError(f"answers must each be of one of the functions {sorted(known)}; got {list(answer)}")
  found = parse_calls(calls) if isinstance(calls, str) else calls
  if not answers:
    return not found
  if found is None or len(found) != len(answers):
    return False
  fits = [[i for i, call in enumerate(found) if call.name == name and _fits(call, accepted, known[name])]
          for answer in answers for name, accepted in answer.items()]
  return _all_matched(fits)


def _all_matched(fits: Sequence[Sequence[int]]) -> bool:
  """Whether each answer can have a call of its own among those that fit it: augmenting paths, one answer at a time."""
  answer_of: dict[int, int] = {}

  def placed(answer: int, tried: set[int]) -> bool:
    for call in fits[answer]:
      if call not in tried:
        tried.add(call)
        if call not in answer_of or placed(answer_of[call], tried):
          answer_of[call] = answer
          return True
    return False

  return all(placed(answer, set()) for answer in range(len(fits)))


def _fits(call: ToolCall, accepted: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any]) -> bool:
  given, properties = call.arguments, parameters["properties"]
  if any(key not in given for key in parameters.get("required", ())):
    return False
  if any(key not in given and "" not in values for key, values in accepted.items()):
    return False
  return all(key in properties and key in accepted and _value_fits(value, accepted[key], properties[key])
             for key, value in given.items())


def _value_fits(value: Any, accepted: Sequence[Any], schema: Mapping[str, Any]) -> bool:
  kind = schema["type"]
  if kind == "tuple" and type(value) is tuple:
    value = list(value)
  if kind == "float" and type(value) is int:
    value = float(value)
  # An accepted value of another type stands for a variable, which is a string in place of a number, say.
  variable = _first_type(accepted)
  if type(value) is not _TYPES[kind]:
    return type(value) is variable and _plain(value) in [_plain(one) for one in accepted]
  if variable not in (None, _TYPES[kind]):
    return value in accepted
  if kind == "dict":
    return any(_dict_fits(value, one) for one in accepted if one != "")
  if kind in ("array", "tuple"):
    nested = _TYPES[schema["items"]["type"]] if "items" in schema else None
    return any(_list_fits(value, one, nested) for one in accepted if isinstance(one, list))
  return _plain(value) in [_plain(one) for one in accepted]


def _list_fits(value: list[Any], accepted: list[Any], nested: type | None) -> bool:
  if len(value) != len(accepted):
    return False
  if nested is dict:
    return all(isinstance(one, dict) and _dict_fits(one, other) for one, other in zip(value, accepted, strict=True))
  types = {nested, _first_type(accepted)} - {None}
  return all(type(one) in types for one in value) and [*map(_plain, value)] == [*map(_plain, accepted)]


def _dict_fits(value: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
  given = all(key in accepted and _plain(one) in [_plain(other) for other in accepted[key]]
              for key, one in value.items())
  return given and all(key in value or "" in values for key, values in accepted.items())


def _first_type(accepted: Sequence[Any]) -> type | None:
  return next((type(one) for one in accepted if one != ""), None)


def _plain(value: Any) -> Any:
  """A string as it is compared; anything else as it is."""
  return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value
