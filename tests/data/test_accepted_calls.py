import json

import pytest

from jaxft import data
from jaxft.data import ToolCall, accepted_calls

TYPES = {"city": "string", "days": "integer", "heat": "float", "wet": "boolean", "point": "tuple", "names": "array",
         "by": "dict", "rows": "array"}
ITEMS = {"point": {"type": "float"}, "names": {"type": "string"}, "rows": {"type": "dict"}}
FUNCTION = {"name": "f", "parameters": {"type": "dict", "required": ["city"], "properties": {
    key: {"type": kind} | ({"items": ITEMS[key]} if key in ITEMS else {}) for key, kind in TYPES.items()}}}
ACCEPTED = {
    "city": ["New York", "NYC"], "days": ["", 2], "heat": ["", 2.0], "wet": ["", True], "point": ["", [1.0, 2.5]],
    "names": ["", ["a", "b"]], "by": ["", {"key": ["x"], "more": ["", 3]}], "rows": ["", [{"n": [1]}, {"n": [2]}]]}


@pytest.mark.parametrize("arguments, right", [
    ("city='new-york'", True), ("city='nyc', days=2", True), ("city='nyc', days=2.0", False), ("days=2", False),
    ("city='nyc', days=True", False), ("city='nyc', heat=2", True), ("city='nyc', heat='2'", False),
    ("city='nyc', wet=True", True), ("city='nyc', wet=1", False), ("city='nyc', wet=False", False),
    ("city='nyc', point=(1.0, 2.5)", True), ("city='nyc', point=[2.5, 1.0]", False), ("city='nyc', other=1", False),
    ("city='nyc', names=['A', 'b']", True), ("city='nyc', names=('a', 'b')", False), ("city='nyc', names=['a']", False),
    ("city='nyc', names=['a', 2]", False), ("city='nyc', by={'key': 'X'}", True), ("city=3", False),
    ("city='nyc', by={'key': 'x', 'more': 3}", True), ("city='nyc', by={'more': 3}", False),
    ("city='nyc', by={'key': 'x', 'z': 1}", False), ("city='nyc', rows=[{'n': 1}, {'n': 2}]", True),
    ("city='nyc', rows=[{'n': 2}, {'n': 1}]", False), ("city='nyc', rows=[{'n': 1}]", False)])
def test_values_by_type(arguments, right):
  assert accepted_calls(f"f({arguments})", [{"f": ACCEPTED}], [FUNCTION]) is right


def test_calls_in_any_order_and_none_where_none_serves():
  answers = [{"f": {"city": [city]}} for city in ("Oslo", "Lima")]
  right = lambda text: accepted_calls(text, answers, [FUNCTION])
  assert right("[f(city='Lima'), f(city='Oslo')]") and not right("f(city='Lima')") and not right("?")
  either = [{"f": {"city": ["Oslo", "Lima"]}}, {"f": {"city": ["Oslo"]}}]
  for text in ("[f(city='Lima'), f(city='Oslo')]", "[f(city='Oslo'), f(city='Lima')]"):
    assert accepted_calls(text, either, [FUNCTION])  # whichever call the first answer is tried with
  assert not accepted_calls("[f(city='Lima'), f(city='Lima')]", either, [FUNCTION])
  assert not right("[f(city='Lima'), f(city='Lima')]") and not right("[f(city='Lima'), g(city='Oslo')]")
  assert not right("[f(city='Lima'), f(city='Oslo'), f(city='Oslo')]") and not right(None)
  for text, fine in (("I cannot tell.", True), ("[]", True), (None, True), ("f(city='Oslo')", False)):
    assert accepted_calls(text, [], [FUNCTION]) is fine
  for answer in ({}, {"g": {}}, {"f": {}, "g": {}}):
    with pytest.raises(ValueError, match="answers must each be of one of the functions"):
      accepted_calls("f()", [answer], [FUNCTION])


@pytest.mark.parametrize("category", ["multiple", "parallel"])
def test_bfcls_own_answers_are_accepted_and_broken_ones_are_not(category):
  """The first accepted value of each parameter that must be given; rows with dicts are passed over."""
  seen = 0
  for row in data.source(f"bfcl/{category}", "test"):
    functions, answers = json.loads(row["functions"]), json.loads(row["answers"])
    if '{"' in json.dumps([[*accepted.values()] for answer in answers for accepted in answer.values()]):
      continue
    required = {function["name"]: function["parameters"]["required"] for function in functions}
    calls = [ToolCall(name, {key: next(value for value in values if value != "") for key, values in accepted.items()
                             if "" not in values or key in required[name]})
             for answer in answers for name, accepted in answer.items()]
    assert accepted_calls(calls, answers, functions) and accepted_calls(calls[::-1], answers, functions)
    assert not accepted_calls(calls[1:], answers, functions)
    first = calls[0]
    for broken in (first._replace(name=first.name + "_"), first._replace(arguments={**first.arguments, "zz": 1}),
                   first._replace(arguments=dict.fromkeys(first.arguments, object()))):
      assert not first.arguments or not accepted_calls([broken, *calls[1:]], answers, functions)
    seen += 1
  assert seen > 150
