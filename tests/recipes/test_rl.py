"""Tuning by rewards: what an answer is worth, what a step learns, micro-batches, several updates on one set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxft import losses
from jaxft.models import decoder
from jaxft.recipes.rl.losses import POLICY_LOSSES, policy_settings, reads
from jaxft.recipes.rl.measure import _mean_with_interval
from jaxft.recipes.rl.objective import Answers, answer_log_probs, policy
from jaxft.recipes.rl.rewards import Reward, data_of, exact, rewards_of, total
from jaxft.recipes.rl.sampling import Sampled
from jaxft.recipes.rl.step import PolicyStep
from jaxft.recipes.tasks import wilson_interval
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.training.rl import Rollouts
from jaxft.transforms import full

ROWS, START, NEW, VOCAB = 4, 3, 4, 20
LENGTHS = np.array([4, 2, 3, 1])


def small():
  config = decoder.DecoderConfig(
      vocab_size=VOCAB, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8, eos_id=1)
  return config, decoder.init(jax.random.key(0), config, stddev=0.5)


def answers(**more):
  """Prompts padded on the left and answers of their own lengths."""
  rng = np.random.default_rng(0)
  where = np.arange(NEW) < LENGTHS[:, None]
  prompt = np.arange(START) >= np.array([0, 1, 2, 0])[:, None]
  mask = np.concatenate([prompt, where], axis=1)
  tokens = rng.integers(2, VOCAB, mask.shape).astype(np.int32) * mask
  apart = lambda: -rng.uniform(2, 4, where.shape).astype(np.float32)
  return Answers(tokens, mask, where, rng.normal(size=ROWS).astype(np.float32), apart(), apart())._replace(**more)


def settings_of(name):
  return policy_settings(name, beta=0.1, temperature=0.7, max_new_tokens=NEW)


def test_micro_batches_equal_one_batch_and_the_value_is_that_of_the_formula():
  config, params = small()
  steps, batches, objectives = {}, {}, {}
  for name, loss in POLICY_LOSSES.items():
    batches[name] = answers(**({"reference": None} if loss.beta_of_reward else {}))
    objectives[name] = policy(config, name, settings_of(name), remat="none")
    for parts in (1, 2):
      steps[name, parts] = make_train_step(
          Recipe(objectives[name], full(), optax.sgd(0.1), accumulate=parts), donate=False)
  state, frozen = init_state(
      jax.random.key(0), params, Recipe(objectives["grpo"], full(), optax.sgd(0.1)))
  run = jax.jit(lambda state, batches: {key: step(state, frozen, batches[key[0]]) for key, step in steps.items()})
  found = jax.device_get(run(state, batches))
  for name in POLICY_LOSSES:
    (whole, one), (cut, two) = found[name, 1], found[name, 2]
    assert max(np.abs(x - y).max() for x, y in zip(
        *map(jax.tree.leaves, (params, whole.trainable)), strict=True)) > 1e-4, name
    for x, y in zip(*map(jax.tree.leaves, (whole.trainable, cut.trainable)), strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6, err_msg=name)
    for metric, value in one.items():
      assert value == pytest.approx(float(two[metric]), rel=1e-4, abs=1e-5), (name, metric)

  batch = batches["grpo"]  # by hand, from all logits
  hidden = decoder.hidden_states(params, config, batch.tokens, mask=batch.mask).hidden
  log_p = np.asarray(jax.nn.log_softmax(decoder.logits(params, config, hidden) / 0.7))
  new = np.take_along_axis(log_p[:, START - 1:-1], batch.tokens[:, START:, None], axis=2)[..., 0]
  ratio, a = np.exp(new - batch.old), batch.advantages[:, None]
  r = batch.reference - new
  values = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a) + 0.1 * ratio * (np.exp(r) - r - 1)
  by_hand = ((values * batch.where).sum(axis=1) / LENGTHS).mean()
  assert found["grpo", 1][1]["loss"] == pytest.approx(by_hand, rel=1e-4)
  dr_grpo = (values * batch.where).sum() / (ROWS * NEW)
  assert found["dr_grpo", 1][1]["loss"] == pytest.approx(dr_grpo, rel=1e-4)
  with pytest.raises(ValueError, match="reference where beta > 0 is of the loss, and there alone; got beta = 0.1"):
    objectives["rloo"](params, batch, jax.random.key(0))


class Fixed:
  """In place of a sampler: one set of answers to two prompts, with rewards that are given."""

  def __init__(self, rewards):
    self.rewards, self.seen = np.asarray(rewards, np.float64), []

  def __call__(self, params, prompts, batch, key, *, samples):
    del prompts, batch
    self.seen.append((jax.device_get(params), jax.random.key_data(key).tolist(), samples))
    data = answers()
    new = np.pad(data.where, ((0, 0), (START, 0)))
    rollouts = Rollouts(data.tokens, data.mask, new, np.zeros(new.shape, np.float32))
    return Sampled(rollouts, START, {"reward": self.rewards}, LENGTHS, LENGTHS == NEW)


def run(name, rewards, *, steps=1, **given):
  """What trains, the metrics and the sampler after some steps from the same start."""
  config, params = small()
  settings = policy_settings(name, group_size=2, max_new_tokens=NEW, **given)
  recipe = Recipe(policy(config, name, settings, remat="none"), full(), optax.sgd(0.1))
  state, frozen = init_state(jax.random.key(0), params, recipe)
  reference = jax.tree.map(jnp.copy, params) if settings.beta else None
  sampler = Fixed(rewards)
  step = PolicyStep(
      make_train_step(recipe), lambda frozen, trainable: trainable, sampler, None, POLICY_LOSSES[name], settings,
      answer_log_probs(config, temperature=settings.temperature), reference, jax.random.key(1), None)
  for _ in range(steps):
    state, metrics = step(state, frozen, None)
  return params, state, {name: float(x) for name, x in metrics.items()}, sampler


def test_a_step_raises_the_better_answer_and_tells_how_it_went():
  before, state, metrics, sampler = run("grpo", [[1.0, 0.0], [0.5, 0.5]], steps=2)
  assert int(state.step) == 2 and [samples for *_, samples in sampler.seen] == [2, 2]
  assert sampler.seen[0][1] != sampler.seen[1][1]  # each step has draws of its own
  moved = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (sampler.seen[1][0], before)), strict=True)]
  assert max(moved) > 0  # the second step samples by what the first has learnt
  assert metrics["reward"] == 0.5 and metrics["length"] == 2.5 and metrics["cut"] == 0.25
  assert metrics["uninformative"] == 0.5
  config, _ = small()
  score = jax.jit(answer_log_probs(config, temperature=1.0))
  gained = (score(state.trainable, answers()) - score(before, answers())).sum(axis=1)
  assert gained[0] > 0 > gained[1]
  _, idle, metrics, _ = run("grpo", [[1.0, 1.0], [0.5, 0.5]])
  jax.tree.map(np.testing.assert_array_equal, idle.trainable, before)  # nothing to tell answers by
  assert metrics["uninformative"] == 1


def test_what_all_answers_to_a_prompt_have_in_common_counts_for_nothing():
  _, plain, *_ = run("grpo", [[1.0, 0.0], [0.25, 0.5]])
  _, offset, metrics, _ = run("grpo", [[1e8 + 1.0, 1e8], [0.25, 0.5]])  # float32 has no 1e8 + 1
  jax.tree.map(np.testing.assert_array_equal, plain.trainable, offset.trainable)


def test_several_updates_on_one_set_of_answers():
  _, state, metrics, sampler = run("dapo", [[1.0, 0.0], [0.0, 2.0]], steps=2, passes=3, beta=0.5)
  assert int(state.step) == 2 and len(sampler.seen) == 2  # steps of the run, not updates
  assert metrics["kl"] > 0
  _, once, _, _ = run("dapo", [[1.0, 0.0], [0.0, 2.0]], passes=1)
  _, thrice, _, _ = run("dapo", [[1.0, 0.0], [0.0, 2.0]], passes=3)
  assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (once.trainable, thrice.trainable)), strict=True))


def test_answers_that_were_cut_teach_nothing():
  before, state, metrics, _ = run("grpo", [[1.0, 0.0], [1.0, 1.0]], drop_cut=True)
  config, _ = small()
  assert metrics["weight"] == 3 and any((x != y).any() for x, y in zip(
      *map(jax.tree.leaves, (before, state.trainable)), strict=True))
  objective = policy(config, "grpo", policy_settings("grpo", max_new_tokens=NEW), remat="none")
  own = answers(old=None, reference=None, advantages=np.array([0.7071, -0.7071, 0, 0], np.float32))
  own = own._replace(where=own.where & (LENGTHS < NEW)[:, None])
  gradient = jax.grad(lambda params: objective(params, own, jax.random.key(0))[0].value)(before)
  change = jax.tree.map(lambda x, y: (x - y) / 0.1, before, state.trainable)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), change, gradient)


def test_rloo_takes_the_divergence_off_the_reward():
  before, state, metrics, sampler = run("rloo", [[1.0, 0.0], [2.0, 2.0]], beta=0.5, steps=2)
  assert metrics["kl"] != 0  # of the second step, before which the policy has moved
  config, _ = small()
  score = answer_log_probs(config, temperature=1.0)
  moved, data = sampler.seen[1][0], answers()
  apart = np.where(data.where, score(moved, data) - score(before, data), 0).sum(axis=1)
  shaped = np.array([[1.0, 0.0], [2.0, 2.0]]) - 0.5 * apart.reshape(2, 2)
  advantages = losses.leave_one_out_advantages(shaped.astype(np.float32)).reshape(-1)
  objective = policy(config, "rloo", policy_settings("rloo", beta=0.5, max_new_tokens=NEW), remat="none")
  own = data._replace(old=None, reference=None, advantages=np.asarray(advantages))
  gradient = jax.grad(lambda params: objective(params, own, jax.random.key(0))[0].value)(moved)
  change = jax.tree.map(lambda x, y: (x - y) / 0.1, moved, state.trainable)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4), change, gradient)


@pytest.mark.parametrize("text, said", [
  ("so 3 + 4 = 7.", "7"), ("7-3", "3"), ("it is -3", "-3"), ("1,234.50 in all", "1234.5"), ("1,2", "2"),
  ("2e3", "2000"), ("(5)-2", "2"), ("no number", None), ("", None)])
def test_the_last_number_of_a_text(text, said):
  assert exact([text], [{"answer": said or "0"}]) == [float(said is not None)]


def test_the_answer_behind_a_marker():
  same = lambda text, answer: exact([text], [{"answer": answer}], marker="####")[0]
  assert same("5 + 5 = 10\n#### 10.", "it is so\n#### 10.0") and same("#### Red \nand more", "red")
  assert not same("10", "10") and not same("#### 1 #### 2", "1") and not same("#### ten", "10")
  with pytest.raises(ValueError, match="needs --marker where an `answer` is no number; got 'red'"):
    exact(["red"], [{"answer": "red"}])
  check = rewards_of(("exact",), (), "####")[0].check
  with pytest.raises(ValueError, match="the answer of record 2 is empty behind the marker '####'"):
    check([{"answer": "1"}, {"answer": "1 ####"}])
  with pytest.raises(ValueError, match="reads the field answer; got the fields question"):
    check([{"question": "1"}])
  with pytest.raises(ValueError, match="reads the field answer; got the fields prompt, level"):
    check([{"prompt": "1", "others": '{"level": 2}'}])


def score(texts, records):
  return [len(text) / record["n"] for text, record in zip(texts, records, strict=True)]


def whole(texts, records):
  if len(texts) > 1:
    raise RuntimeError("too many")
  return [0.0]


def nothing(texts, records):
  return 3


def some(texts, records):
  return [1.0]


def strange(texts, records):
  return [1.0, float("nan")]


def by_name(texts, records):
  return dict.fromkeys(range(len(texts)), 1.0)


def words(texts, records):
  return ["1"] * len(texts)


def vast(texts, records):
  return [1e38] * len(texts)


def lazily(texts, records):
  yield from (1.0 / (text != "a") for text in texts)


def emptied(texts, records):
  texts.clear()
  for record in records:
    record.clear()
  return [1.0, 0.0]


def test_rewards_are_summed_and_their_faults_name_the_record():
  here = f"{__name__}:"
  of = lambda *names, weights=(): rewards_of(names, weights, None)
  records = [{"n": 2, "answer": "1"}, {"n": 4, "answer": "2"}]
  found = total(of(f"{here}score", "exact", weights=(1.0, -2.0)), ["1", "22"], records)
  assert found["reward"].tolist() == [0.5 - 2, 0.5] and found["reward/exact"].tolist() == [1, 0]
  assert set(total(of(f"{here}score"), ["1"], records[:1])) == {"reward"}
  for name, said in (
      ("score", r"raised ZeroDivisionError: .*; of the record \{'n': 0.* and the answer 'bb'"),
      ("whole", "raised RuntimeError: too many; of 2 answers together, and of none by itself"),
      ("nothing", "must give a sequence of numbers; got 3"), ("some", "one number for each of 2 answers; got 1"),
      ("strange", r"must give finite numbers, of 1e\+15 at most; got nan of the record \{'n': 0"),
      ("vast", "of 1e.15 at most; got 1e.38 of the record"), ("words", "must give finite .*; got '1' of the record"),
      ("by_name", r"must give a sequence of numbers; got \{0: 1.0"),
      ("lazily", "raised ZeroDivisionError: .*; of the record .* and the answer 'a'")):
    with pytest.raises(ValueError, match=said):
      total(of(here + name), ["a", "bb"], [records[0], {**records[1], "n": 0}])
  total(of(here + "emptied"), texts := ["a", "bb"], records)  # of its own copies
  assert texts == ["a", "bb"] and records[0]["n"] == 2


@pytest.mark.parametrize("names, weights, marker, said", [
  ((), (), None, "--reward must say what an answer is worth"),
  (("exact", "exact"), (), None, "must name each reward once"),
  (("exact",), (1.0, 2.0), None, "one for each of the 1 rewards; got 2"),
  (("exact",), (0.0,), None, "must be finite, and not all 0; got 0.0"),
  (("math:sqrt",), (), "####", "--marker is read by the reward exact alone"),
  (("exact",), (), " ", "--marker must be a text"),
  (("exakt",), (), None, "must be exact, reasoning-gym:TASK or module:function; got 'exakt'"),
  (("no_such_module:f",), (), None, "no_such_module:f: ModuleNotFoundError"),
  (("math:no",), (), None, "math:no: AttributeError"), (("math:pi",), (), None, "must name a function; got 3.14"),
])
def test_rewards_that_are_none(names, weights, marker, said):
  with pytest.raises(ValueError, match=said):
    rewards_of(names, weights, marker)


def test_a_reward_that_makes_its_questions_names_the_data():
  assert data_of(("exact",), "file.jsonl") == "file.jsonl" and data_of((), None) is None
  assert data_of(("reasoning-gym:chain_sum",), None) == "reasoning_gym/chain_sum"
  with pytest.raises(ValueError, match="has the questions of reasoning_gym/chain_sum; got the data x.jsonl"):
    data_of(("reasoning-gym:chain_sum",), "x.jsonl")
  of_gym = rewards_of(("reasoning-gym:chain_sum",), (), None)[0]
  record = {"question": "What is 1 + 2?", "answer": "3", "task": "chain_sum", "metadata": "{}"}
  assert total([of_gym], ["3", "no"], [record, record])["reward"].tolist() == [1.0, 0.0]
  with pytest.raises(ValueError, match="answers to chain_sum; the data are of gcd"):
    of_gym.check([{**record, "task": "gcd"}])
  with pytest.raises(ValueError, match="questions of --data reasoning_gym/TASK; got the fields question"):
    of_gym.check([{"question": "?"}])


def test_the_interval_of_a_mean_reward():
  right = np.array([1.0, 0.0, 1.0, 1.0])
  found = _mean_with_interval(right)
  assert (found["reward"], found["reward_low"], found["reward_high"]) == (0.75, *wilson_interval(0.75, 4))
  some = np.array([0.25, 1.0, 0.0, 0.5])
  low, high = stats.t.interval(0.95, 3, some.mean(), stats.sem(some))
  assert _mean_with_interval(some) == pytest.approx({"reward": 0.4375, "reward_low": low, "reward_high": high})
  assert _mean_with_interval(np.array([0.3])) == {"reward": 0.3}


def test_the_table_says_what_each_loss_reads():
  assert "clip_low" in reads("grpo") and "clip_low" not in reads("cispo") and "clip_high" in reads("cispo")
  assert "clip_high" not in reads("sapo")
  assert policy_settings("rloo").beta == 0.05 and policy_settings("grpo", beta=None, clip_high=0.3).clip_high == 0.3


def test_an_answer_ends_by_any_of_the_tokens_that_end_one(monkeypatch):
  import dataclasses

  from jaxft.formats import load
  from jaxft.recipes.rl import answering, sampling
  from jaxft.recipes.rl.prompts import Prompts

  model = dataclasses.replace(load("smollm2-135m:tiny"), end_ids=(7,))
  eos = model.config.eos_id
  assert eos not in (5, 7)
  asked = {}

  def drawn(stepwise, ids, key, *, samples, mask, **options):
    asked.update(options)
    tokens = np.array([[3, 5, 7, 0], [3, 5, eos, 0], [3, 5, 5, 5]], np.int32)
    where = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]], bool)
    return Rollouts(tokens, np.ones_like(where), where, np.zeros(tokens.shape, np.float32))

  monkeypatch.setattr(answering, "rollout", drawn)
  length = Reward("length", 1.0, lambda texts, records: [float(len(text)) for text in texts], lambda records: None)
  settings = policy_settings("grpo", beta=0.1, temperature=0.7, max_new_tokens=3)
  sampler = sampling.Sampler(model, [length], settings, dtype=jnp.float32, mesh=None)
  prompts = Prompts([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}], model, max_length=4)
  batch = {"ids": np.full((3, 1), 3, np.int32), "mask": np.ones((3, 1), np.int32), "index": np.arange(3)}
  found = sampler(model.params, prompts, batch, jax.random.key(0), samples=1)
  assert asked["stop"] == (eos, 7)
  assert found.cut.tolist() == [False, False, True]
