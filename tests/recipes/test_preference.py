"""Objectives of preferences: micro-batches equal one batch, what fills up counts nothing, logits are held in pieces."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxft import losses
from jaxft.losses import Terms
from jaxft.models import decoder
from jaxft.recipes.preference.losses import PREFERENCES, by_value, reads
from jaxft.recipes.preference.measure import of_judged, of_pairs
from jaxft.recipes.preference.objective import POSITIONS, Sides, preference, score_function, settings_of
from jaxft.recipes.preference.preparation import teaches_less
from jaxft.recipes.preference.records import Judged, Mismatched
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import full

ROWS, TIME, VOCAB = 4, 9, 30
# One of each kind of path; the others differ from one of these in the ranking alone.
QUICK = ("dpo", "cpo", "orpo", "asft", "kto", "poft")


def small():
  config = decoder.DecoderConfig(
      vocab_size=VOCAB, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
  return config, decoder.init(jax.random.key(0), config, stddev=0.5)


def batch(sides=2, seed=0):
  """Rows of 3 tokens of prompt and 1 to 6 of response, each of its own length."""
  rng = np.random.default_rng(seed)
  lengths = 4 + (np.arange(ROWS * sides).reshape(ROWS, sides) * 5 + 3) % 6
  time = np.arange(TIME)
  mask = (time < lengths[..., None]).astype(np.int32)
  return {"ids": rng.integers(1, VOCAB, mask.shape).astype(np.int32) * mask, "mask": mask,
          "loss_mask": mask * (time >= 3), "reference": -rng.uniform(5, 15, (ROWS, sides)).astype(np.float32),
          "desirable": np.array([True, False, False, True])}


def of_loss(name):
  return batch(1 if PREFERENCES[name].sides == "response" else 2)


def updates(names):
  """Of each loss the params and metrics after a step, of one batch and of two micro-batches; all in one program."""
  config, params = small()
  steps, batches = {}, {name: of_loss(name) for name in names}
  for name in names:
    for parts in (1, 2):
      whole = PREFERENCES[name].whole
      objective = preference(config, name, settings_of(name, label_smoothing=0.1 if PREFERENCES[
          name].label_smoothing is not None else None), chunks=parts if whole else 1, remat="none")
      recipe = Recipe(objective, full(), optax.sgd(1.0), accumulate=1 if whole else parts)
      steps[name, parts] = make_train_step(recipe, donate=False)
  state, frozen = init_state(jax.random.key(0), params, recipe)
  run = jax.jit(lambda state, batches: {(name, parts): step(state, frozen, batches[name])
                                        for (name, parts), step in steps.items()})
  return params, jax.device_get(run(state, batches))


@pytest.mark.parametrize("names", [
    QUICK, pytest.param(tuple(name for name in PREFERENCES if name not in QUICK), marks=pytest.mark.exhaustive)])
def test_micro_batches_equal_one_batch(names):
  before, found = updates(names)
  for name in names:
    (whole, one), (cut, two) = found[name, 1], found[name, 2]
    moved = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (before, whole.trainable)), strict=True)]
    assert max(moved) > 1e-3, name
    for x, y in zip(*map(jax.tree.leaves, (whole.trainable, cut.trainable)), strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6, err_msg=name)
    assert set(one) == set(two)
    for metric, value in one.items():
      assert value == pytest.approx(float(two[metric]), rel=1e-4, abs=1e-5), (name, metric)


def test_the_value_is_that_of_all_logits_and_rows_that_fill_up_count_nothing():
  config, params = small()
  data = batch()
  where = np.array([True, True, False, True])
  data["ids"][2] = 0  # what stands there is not read
  hidden = lambda side: decoder.hidden_states(params, config, data["ids"][:, side], mask=data["mask"][:, side]).hidden

  def by_hand():
    log_p = [jax.nn.log_softmax(decoder.logits(params, config, hidden(side)))[:, :-1] for side in (0, 1)]
    tokens = [jnp.take_along_axis(x, data["ids"][:, side, 1:, None], axis=2)[..., 0] for side, x in enumerate(log_p)]
    marks = [data["loss_mask"][:, side, 1:] for side in (0, 1)]
    averages = [np.asarray((t * m).sum(axis=1) / m.sum(axis=1)) for t, m in zip(tokens, marks, strict=True)]
    odds = [np.asarray(a - np.log1p(-np.exp(a))) for a in averages]
    real = data["mask"][where, 0, 1:]
    nll = -(np.asarray(tokens[0])[where] * real).sum() / real.sum()
    return nll + 0.1 * np.log1p(np.exp(-(odds[0] - odds[1])))[where].mean(), [x[where].mean() for x in averages]

  (wanted, averages), inputs = by_hand(), data | {"where": where}
  found, metrics = preference(config, "orpo", settings_of("orpo"), remat="none")(
      params, inputs, jax.random.key(0))
  assert isinstance(found, Terms) and float(found.value) == pytest.approx(float(wanted), rel=1e-5)
  assert metrics["margin"].weight == 3
  # What is told of both is of a token, also where sums are ranked.
  _, metrics = preference(config, "dpo", settings_of("dpo"), remat="none")(
      params, inputs | {"reference": np.zeros((ROWS, 2), np.float32)}, jax.random.key(0))
  assert [float(metrics[name].value) for name in ("chosen", "rejected")] == pytest.approx(averages, rel=1e-5)


def test_what_may_stand_beside_a_loss_is_that_of_all_logits():
  config, params = small()
  data = batch()
  data["loss_mask"][1, 1] = 0  # of a row without a response nothing counts
  options = {
      "plain": {}, "length": {"length_alpha": 0.25}, "nll": {"length_alpha": 0.25, "likelihood": 1.0},
      "wpo": {"wpo": True}, "js": {"divergence": "js"}, "alpha": {"divergence": "alpha", "divergence_alpha": 0.3}}
  objectives = {name: preference(config, "dpo", settings_of("dpo", **more), remat="none")
                for name, more in options.items()}
  objectives["alphapo"] = preference(config, "simpo", settings_of("simpo", reward_alpha=0.2), remat="none")
  hidden = lambda params, side: decoder.hidden_states(
      params, config, data["ids"][:, side], mask=data["mask"][:, side]).hidden

  @jax.jit
  def run(params):
    value = lambda name, more={}: lambda params: objectives[name](params, data | more, jax.random.key(0))[0].value
    first = {"where": np.arange(ROWS) == 0}
    gradients = {name: jax.grad(value(name, first))(params)["norm"]["scale"] for name in ("wpo", "plain")}
    log_p = [jax.nn.log_softmax(decoder.logits(params, config, hidden(params, side))) for side in (0, 1)]
    told = score_function(config, length_alpha=0.25, remat="none")(params, data).of("average")
    return {name: value(name)(params) for name in objectives}, gradients, log_p, told

  found, gradients, log_p, told = jax.device_get(run(params))
  mask, rows = data["loss_mask"][..., 1:], np.array([0, 2, 3])
  tokens = np.stack([np.take_along_axis(x[:, :-1], data["ids"][:, side, 1:, None], axis=2)[..., 0]
                     for side, x in enumerate(log_p)], axis=1)
  counts = mask.sum(axis=2)
  order = np.cumsum(mask, axis=2) * mask
  loss = lambda z: np.logaddexp(0, -z)[rows].mean()
  sums = (tokens * mask).sum(axis=2)
  h = sums - data["reference"]
  lead = lambda x: x[:, 0] - x[:, 1]
  assert found["plain"] == pytest.approx(loss(0.1 * lead(h)), rel=1e-4)
  beyond = order > counts.min(axis=1)[:, None, None]
  cut = (tokens * mask * np.where(beyond, 0.25, 1)).sum(axis=2) - data["reference"]
  assert beyond.any() and found["length"] == pytest.approx(loss(0.1 * lead(cut)), rel=1e-4)
  # Only the ranking makes light of what goes beyond: likelihood and averages are of all tokens.
  nll = -sums[rows, 0].sum() / counts[rows, 0].sum()
  assert found["nll"] == pytest.approx(loss(0.1 * lead(cut)) + nll, rel=1e-4)
  np.testing.assert_allclose(told, sums / np.maximum(counts, 1), rtol=1e-4)
  collisions = np.stack([np.log(np.exp(2 * x[:, :-1]).sum(axis=2)) for x in log_p], axis=1)
  near = np.exp(((tokens - collisions) * mask).sum(axis=2) / np.maximum(counts, 1)).prod(axis=1)
  assert found["wpo"] == pytest.approx((near * np.logaddexp(0, -0.1 * lead(h)))[rows].mean(), rel=1e-4)
  # The weights are constants: of one pair alone the gradient is that of plain DPO times its weight.
  np.testing.assert_allclose(gradients["wpo"], near[0] * gradients["plain"], rtol=1e-3, atol=1e-8)
  assert found["js"] == pytest.approx(loss(0.1 * lead(np.log(2) - np.log1p(np.exp(-h)))), rel=1e-4)
  assert found["alpha"] == pytest.approx(loss(0.1 * lead(np.expm1(-0.7 * h) / -0.7)), rel=1e-3)
  averages = sums / np.maximum(counts, 1)
  shaped = (1 - np.exp(-0.2 * averages)) / 0.2
  assert found["alphapo"] == pytest.approx(loss(2.0 * lead(shaped) - 1.0), rel=1e-4)
  with pytest.raises(ValueError, match=r"length_alpha must lie in \[0, 1\]; got 2"):
    preference(config, "dpo", settings_of("dpo", length_alpha=2.0))


def test_no_logits_of_a_whole_batch_are_held():
  config, params = small()
  data = {name: np.zeros((ROWS, 2, 1024), np.int32) for name in ("ids", "mask", "loss_mask")}
  data["reference"] = np.zeros((ROWS, 2), np.float32)
  objective = preference(config, "dpo", settings_of("dpo"), remat="none")
  value = lambda params: objective(params, data, jax.random.key(0))[0].value
  text = str(jax.make_jaxpr(jax.grad(value))(params))
  assert f",{VOCAB}]" in text
  held = {int(rows) * int(time) for rows, time in re.findall(rf"f32\[(\d+),(\d+),{VOCAB}\]", text)}
  assert held and max(held) <= POSITIONS


def test_the_mismatched_response_is_to_another_prompt():
  pairs = [{"prompt": p, "chosen": f"{p} yes", "rejected": f"{p} no"} for p in ("a", "a", "b", "c")]
  records = Mismatched(Judged(pairs))
  assert [(r["completion"], r["label"], r["other"]) for r in (records[i] for i in range(8))] == [
      ("a yes", True, "c no"), ("a no", False, "c no"), ("a yes", True, "c no"), ("a no", False, "c no"),
      ("b yes", True, "a no"), ("b no", False, "a no"), ("c yes", True, "b no"), ("c no", False, "b no")]
  beside = Mismatched(Judged(pairs[:1]), Judged(pairs))
  assert [beside[i]["other"] for i in (0, 1)] == ["b yes", "b yes"]
  with pytest.raises(ValueError, match="all 4 records have one prompt"):
    Mismatched(Judged(pairs[:2]))


def test_measures_by_hand():
  lead = np.array([1.0, 2.0, 0.0, -1.0])
  of = {"average": np.array([[-1.0, -2.0]] * 4)}
  found = of_pairs(lead, of)
  assert found["accuracy"] == 0.625 and found["margin"] == 0.5 and found["likelier"] == 1
  wilson = scipy.stats.binomtest(3, 4).proportion_ci(method="wilson")
  three = of_pairs(np.array([1.0, 2.0, 3.0, -1.0]), of)
  assert (three["accuracy_low"], three["accuracy_high"]) == pytest.approx((wilson.low, wilson.high), rel=1e-5)
  judged = of_judged(lead, {"desirable": np.array([True, True, False, False])})
  assert judged["accuracy"] == 1 and judged["margin"] == 2 and judged["accuracy_high"] == 1
  assert "accuracy" not in of_judged(lead[:2], {"desirable": np.array([True, True])})


def test_the_table_says_what_each_loss_reads():
  assert reads("dpo") == (
      "beta", "label_smoothing", "reference", "divergence", "divergence_alpha", "length_alpha", "wpo", "likelihood")
  assert reads("kto") == ("beta", "reference", "desirable_weight", "undesirable_weight")
  assert reads("orpo") == ("beta", "likelihood") and reads("poft") == ("beta", "margin", "reference")
  assert "2 for simpo" in by_value("beta") and "0.4 for orpo" in by_value("rate")
  for name, loss in PREFERENCES.items():  # what is usual is within what the loss takes
    side = jnp.full(2, -1.0)
    four = jnp.stack([side, side], axis=1)
    values, _ = loss.make(losses, Sides(four, four, jnp.ones((2, 2), jnp.int32), jnp.array([True, False]), 0.0, None),
                          settings_of(name))
    assert np.isfinite(values).all(), name


def test_what_records_cannot_teach_is_said():
  pair, judged = PREFERENCES["ipo"], PREFERENCES["kto"]
  pairs = [{"chosen": [{"role": "assistant", "content": x}], "rejected": [{"role": "assistant", "content": "a"}]}
           for x in "aab"]
  assert teaches_less(pair, pairs) == (
      "2 of 3 pairs have one response as both chosen and rejected, which teaches nothing")
  assert teaches_less(pair, pairs[2:]) is None
  of = lambda *labels: teaches_less(judged, [{"label": label} for label in labels])
  assert of(True, False) is None
  assert "all 2 responses are desirable: they are made more likely" in (of(True, True) or "")
  assert "undesirable: they are made less likely" in (of(0) or "")
  assert teaches_less(PREFERENCES["poft"], [{"text": "a"}]) is None
