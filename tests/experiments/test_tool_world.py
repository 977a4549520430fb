import numpy as np
import pytest

from experiments.tasks.tools import world
from experiments.tasks.tools.agent import Agent, judge
from jaxft.data import ToolCall, call_error, reports_error
from jaxft.seal import SealedSplitError, sealed


@pytest.fixture(scope="module")
def requests():
  return world.draw(np.random.default_rng(0), 400, hard=0.5)


def test_calls_are_of_bfcls_functions_and_spelled_in_tokens(requests):
  for request in requests:
    assert set(request.gold.arguments) <= set(world.schemas()[request.gold.name])
    assert world.read_call(world.spelled(request.gold)) == request.gold
    if request.hard:
      number, addend = (int(word) for word in request.text.split() if word.isdigit())
      assert number + addend in request.gold.arguments.values()
  assert {request.gold.name for request in requests} == set(world.WORDINGS)
  assert 0.1 < np.mean([request.hard for request in requests]) < 0.5


def test_every_mistake_is_told_by_the_tools_reply_and_no_right_call_is(requests):
  kinds = set()
  for request in requests:
    wrong = world.wrong_call(request)
    kinds.add(call_error(wrong, request.gold, world.schemas()))
    assert reports_error(world.reply(wrong, request.gold))
    assert not reports_error(world.reply(request.gold, request.gold))
  assert {"wrong tool", "unknown tool", "unknown and other wrong parameters"} <= kinds and "none" not in kinds


def test_splits_share_no_request(requests):
  held = {split: world.held_out(split, 100) for split in ("validation", "test")}
  texts = [{request.text for request in part} for part in (requests, *held.values())]
  assert len(texts[1]) == len(texts[2]) == 100 and not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
  assert held["test"] == world.held_out("test", 100)
  with sealed("test"), pytest.raises(SealedSplitError):
    world.held_out("test", 10)


def test_rows_leave_failed_turns_out_and_weigh_what_decides(requests):
  agent = Agent(dim=8, num_layers=1, num_heads=1)
  some, failing = requests[:30], [i % 3 == 0 for i in range(30)]
  plain = agent.rows(some, failing, drop_failed=False)
  assert len(plain.ids) == 40 and set(np.unique(plain.scored)) == {0.0, 1.0}
  kept = agent.rows(some, failing, drop_failed=True, max_weight=9.0)
  assert len(kept.ids) == 30
  tokens = agent.vocabulary.tokens
  for row, request, fails in zip(range(30), some, failing, strict=True):
    scored = kept.scored[row] > 0
    assert agent.vocabulary.decode(kept.ids[row][scored].tolist()) == world.spelled(request.gold)
    assert (world.REPLY in [tokens[i] for i in kept.ids[row]]) == fails
    weights = kept.scored[row][scored]
    assert weights[0] > 1 and weights[-1] == 1  # the first token of the name, and the end
  similar = next(request for request in requests if request.gold.name == "get_tweet_comments")
  of_name = agent.rows([similar], [False], drop_failed=True, max_weight=9.0).scored[0]
  assert (of_name[of_name > 0][:3] > 1).all()  # get, _tweet and not _user, _comments and not the parenthesis


def test_calls_are_judged(requests):
  some = requests[:4]
  wrong = ToolCall(some[1].gold.name, dict.fromkeys(some[1].gold.arguments, 0))
  texts = [world.spelled(some[0].gold), world.spelled(wrong), world.spelled(world.wrong_call(some[2])), ""]
  found = judge(texts, some)
  assert found.exact.tolist() == [1, 0, 0, 0] and found.repeated.tolist() == [0, 0, 1, 0]
  assert found.values.tolist() == [0, 1, 0, 0] and found.tool[:2].tolist() == [1, 1] and found.tool[3] == 0
