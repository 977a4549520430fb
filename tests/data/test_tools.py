import warnings
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from jaxft.data import (
    TL_TRAINING,
    CallError,
    ToolCall,
    call_error,
    curriculum,
    drop_failed_turns,
    fragment_ends,
    parse_call,
    parse_calls,
    render_call,
    reports_error,
    same_value,
    split_fragments,
    tool_call_reward,
)

SCHEMAS = {"get_weather": ["city", "days", "unit"], "get_wind": ["city"], "search": ["query"]}
GOLD = "get_weather(city='Oslo', days=2)"
# One text for each row of the table, from right to worst.
ROWS = [
    ("get_weather(days=2, city=\"Oslo\")", "none", 1.0),
    ("get_weather(city='Oslo', days=3)", "values", -0.25),
    ("get_weather(city='Oslo')", "missing parameters", -0.5),
    ("get_weather(city='Oslo', days=2, unit='C')", "redundant parameters", -0.5),
    ("get_weather(city='Oslo', days=2, town='Oslo')", "unknown parameters", -0.8),
    ("get_weather(city='Oslo', unit='C')", "redundant and missing parameters", -1.0),
    ("get_weather(city='Oslo', day=2)", "unknown and other wrong parameters", -1.3),
    ("get_weather(city='Oslo', days=2, unit='C', day=2)", "unknown and other wrong parameters", -1.3),
    ("get_wind(city='Oslo')", "wrong tool", -1.5),
    ("get_weather(city='Oslo', unit='C', day=2)", "unknown, redundant and missing parameters", -1.8),
    ("get_rain(city='Oslo', days=2)", "unknown tool", -2.0),
    ("The weather in Oslo is fine.", "unparsable", -2.0),
    ("", "unparsable", -2.0)]


@pytest.mark.parametrize("text, error, reward", ROWS)
def test_each_row_of_the_reward_table(text, error, reward):
  assert call_error(text, GOLD, SCHEMAS) == error
  assert tool_call_reward(text, GOLD, SCHEMAS) == reward
  assert tool_call_reward(text, GOLD, SCHEMAS, scale=dict.fromkeys(get_args(CallError), 0.5) | {error: 9}) == 9.0


def test_the_table_is_whole_and_grows_worse_by_severity():
  assert {error for _, error, _ in ROWS} == set(get_args(CallError)) == set(TL_TRAINING)
  assert all(a >= b for (*_, a), (*_, b) in pairwise(ROWS))


def test_what_the_reward_refuses():
  for gold, schemas, scale, message in (
      ("no call", SCHEMAS, TL_TRAINING, "gold must be a call"),
      (GOLD, {"get_wind": []}, TL_TRAINING, "schemas must have the tool 'get_weather' of the right call"),
      (GOLD, {"get_weather": ["city"]}, TL_TRAINING, r"the parameters of the right call; it lacks \['days'\]"),
      (GOLD, SCHEMAS, {"none": 1.0}, "scale must have a reward for each of CallError"),
      (GOLD, SCHEMAS, {**TL_TRAINING, "none": float("nan")}, r"scale\['none'\] must be a finite number; got nan")):
    with pytest.raises(ValueError, match=message):
      tool_call_reward(GOLD, gold, schemas, scale=scale)


def test_calls_are_read_with_any_literal_and_never_run():
  assert parse_call(" a.b.c(x=-1.5, y=[1, (2, 'z')], z={'k': None}, w=True) ") == (
      "a.b.c", {"x": -1.5, "y": [1, (2, "z")], "z": {"k": None}, "w": True})
  assert parse_call("f()") == ("f", {})
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert parse_call(r"f(x='\d')") == ("f", {"x": "\\d"})
    assert parse_call("'f'(x=1)") is None


@pytest.mark.parametrize("text", [
    "", " ", "f", "f(1)", "f(x)", "f(x=y)", "f(x=g())", "f(*x)", "f(**{'a': 1})", "f(x=1, x=2)", "f(x=1); g()",
    "x = f()", "f(x=1", "f()()", "f[0](x=1)", "f(x={[1]: 2})", "f(x={[]})", "f(x=lambda: 1)", "f(x=[i for i in 'a'])",
    "f(x=f'{1}')", "f(x='\0')", "(" * 5000, "f(x=" + "[" * 150 + "]" * 150,
    "f(x=" + "-" * 50_000 + "1)", "f(x=" + "9" * 5000 + ")",
    "f(x=" + "1+" * 20_000 + "1)", "a" + ".a" * 40_000 + "(x=1)", "f(x='" + "a" * 100_000 + "')",
    "__import__('os').system('true')", "f(x=__import__('os'))"])
def test_what_is_no_call(text):
  found = parse_call(text)
  # Nesting within the parser's own limit is a call or not by its version.
  assert found is None or text.startswith(("f(x=[", "a.a"))


def test_lists_of_calls():
  assert parse_calls("[f(a=1), g.h()]") == (ToolCall("f", {"a": 1}), ToolCall("g.h", {}))
  assert parse_calls("f(a=1)") == (ToolCall("f", {"a": 1}),)
  assert parse_calls("[f(a=1), g]") is None and parse_calls("?") is None


def test_rendered_calls_read_back():
  call = ToolCall("a.b", {"x": "it's \"so\"\n", "y": [1.5, None], "z": {"k": (True,)}})
  assert parse_call(render_call(call)) == call
  for broken in (ToolCall("a b", {}), ToolCall("f", {"x y": 1}), ToolCall("f", {"x": object()}),
                 ToolCall("f", {"x": float("inf")}), ToolCall("f", {"if": 1})):
    with pytest.raises(ValueError, match="call must have a dotted name"):
      render_call(broken)


@pytest.mark.parametrize("a, b, same", [
    (1, 1.0, True), (1, True, False), (0, False, False), ([1], (1,), False), ("a", "A", False), ({1, 2}, {2, 1}, True),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({1: "x"}, {True: "x"}, False), ([1, [True]], [1, [1]], False),
    (None, None, True), ([1, 2], [1], False)])
def test_values_are_the_same_by_type_and_number(a, b, same):
  assert same_value(a, b) is same and same_value(b, a) is same


def say(role, content):
  return {"role": role, "content": content}


def test_failed_turns_are_context_and_no_targets():
  conversation = [
      say("user", "q"), say("assistant", "bad()"), say("tool", "NameError: name 'bad' is not defined"),
      say("assistant", "good()"), say("function", "fine"), say("assistant", "chat"), say("user", "more"),
      say("assistant", "last(")]
  turns = drop_failed_turns(conversation)
  assert [turn.target["content"] for turn in turns] == ["good()", "last("]
  assert turns[0].context == tuple(conversation[:3])  # the failed call and its error are read
  kept = drop_failed_turns(conversation, lambda reply: False)
  assert [turn.target["content"] for turn in kept] == ["bad()", "good()", "last("]
  assert drop_failed_turns([]) == [] and drop_failed_turns([say("user", "q")]) == []
  # The last turn is kept though its own text speaks of an error; nothing but replies is looked at.
  assert len(drop_failed_turns([say("assistant", "error")])) == 1


@pytest.mark.parametrize("reply, failed", [
    ('{"error": "x"}', True), ("CONNECTION ERROR", True), ("f() takes 1 positional  argument", True),
    ("400 Client Error", True), ("Not-Supported", True), ("terror", True), ("", False), ('{"temperature": 3}', False)])
def test_replies_report_errors_in_any_spelling(reply, failed):
  assert reports_error(reply) is failed


def test_what_turns_refuse():
  with pytest.raises(ValueError, match=r"conversation\[0\] must have a role"):
    drop_failed_turns([{"content": "x"}])
  with pytest.raises(ValueError, match=r"conversation\[1\] must have a content that is text"):
    drop_failed_turns([say("assistant", "f()"), say("tool", None)])
  with pytest.raises(ValueError, match="errors must be phrases with letters or digits; got '--'"):
    reports_error("fine", ["--"])


TEXT = "One. Two, f(a='x, y', b=2) end"


@pytest.mark.parametrize("group", [1, 2, 3, 100])
def test_fragments_join_to_the_text_and_tokens_end_where_text_does(group):
  parts = split_fragments(TEXT, group=group)
  assert "".join(parts) == TEXT and len(parts) == -(-len(split_fragments(TEXT)) // group)
  ends = fragment_ends(list(TEXT), group=group)
  assert ends == np.cumsum([len(part) for part in parts]).tolist()
  # Tokens that cut a separator in two: the fragment ends with the token that completes it.
  pieces = ["One", ".", " Tw", "o,", " f(a", "='", "x,", " y',", " b=2", ") end"]
  ends = fragment_ends(pieces)
  assert ["".join(pieces[a:b]) for a, b in zip([0, *ends], ends, strict=False)] == [
      "One. Tw", "o, f(a", "='", "x, y',", " b=2", ") end"]


def test_fragments_at_their_edges():
  assert split_fragments("") == [] and fragment_ends([]) == []
  assert split_fragments("abc") == ["abc"] and split_fragments("a=") == ["a="] and split_fragments("a", []) == ["a"]
  assert split_fragments("a==b") == ["a=", "=", "b"]
  with pytest.raises(ValueError, match="separators must not be empty strings"):
    split_fragments("a", ["", "="])
  with pytest.raises(ValueError, match="group must be at least 1; got 0"):
    split_fragments("a", group=0)


def test_a_curriculum_goes_from_easy_to_hard_and_shuffles_within():
  difficulty = np.repeat([3, 1, 2], 20)
  order = curriculum(difficulty, 3, seed=1, epochs=2)
  stages = order.reshape(3, 2, 20)
  for hard, stage in enumerate(stages, 1):
    assert (difficulty[stage] == hard).all()
    assert np.array_equal(np.sort(stage[0]), np.sort(stage[1])) and not np.array_equal(stage[0], stage[1])
    assert not np.array_equal(stage[0], np.sort(stage[0]))
  assert np.array_equal(order, curriculum(difficulty, 3, seed=1, epochs=2))
  assert not np.array_equal(order, curriculum(difficulty, 3, seed=2, epochs=2))
  assert sorted(curriculum(difficulty, 1, seed=0)) == list(range(60))  # one stage: shuffled
  assert (difficulty[curriculum(difficulty, (0.5, 0.5), seed=0)[:20]] < 3).all()
  assert curriculum(np.array([7.0]), 1, seed=0).tolist() == [0]
  assert len(curriculum(np.arange(7), 3, seed=0)) == 7


def test_what_a_curriculum_refuses():
  for difficulty, stages, options, message in (
      (np.arange(3.0), 4, {}, r"stages must lie in \[1, 3\]"), (np.arange(3.0), 0, {}, r"stages must lie in \[1, 3\]"),
      (np.arange(3.0), (0.5, 0.6), {}, "stages must be shares that sum to 1"),
      (np.arange(3.0), (), {}, "stages must be shares that sum to 1"),
      (np.arange(3.0), (1.0, 0.0), {}, r"stages\[1\] must lie in \(0, 1\]"),
      (np.arange(3.0), 1, {"epochs": 0}, "epochs must be at least 1"),
      (np.array([1.0, np.nan]), 1, {}, "difficulty must be finite")):
    with pytest.raises(ValueError, match=message):
      curriculum(difficulty, stages, seed=0, **options)
