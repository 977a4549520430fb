"""The problems of Masked Thought's study, and what its arms hide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language import masked_thought as thought
from experiments.tasks import small_decoder as small
from jaxft.models import decoder
from tests import draws


def test_solutions_are_right():
  found = thought.problems(np.random.default_rng(0), 50, definitions=4, terms=[2, 3])
  assert {len(solution.split()) for _, solution in found} == {8, 11}
  for question, solution in found:
    defined, asked = question.removesuffix(" >").split(" : ")
    value = dict(zip(defined.split()[::2], map(int, defined.split()[1::2]), strict=True))
    steps, answer = solution.split(" ! ")
    names, values, totals = (steps.split()[i::3] for i in range(3))
    assert names == asked.split() and len(value) == 4
    assert [value[name] for name in names] == [int(x) for x in values]
    assert [int(x) for x in totals] == [sum(value[n] for n in names[: i + 1]) % 5 for i in range(len(names))]
    assert answer == totals[-1]


def test_the_share_grows_for_two_thirds_of_the_steps():
  at = lambda done, grows: float(thought.rate_at(jnp.asarray(done), 0.4, grows))
  np.testing.assert_allclose([at(x, True) for x in (0, 1 / 3, 2 / 3, 0.9)], [0, 0.2, 0.4, 0.4], rtol=1e-6)
  np.testing.assert_allclose([at(x, False) for x in (0, 0.9)], [0.4, 0.4], rtol=1e-6)


def test_arms_hide_inputs_and_no_labels(monkeypatch):
  config = dataclasses.replace(thought.SMOKE, dim=8)
  world = thought.World(config)
  params = draws.params(lambda: decoder.init(jax.random.key(0), world.shape), 0, stddev=0.3)
  pairs = thought.problems(np.random.default_rng(0), 40, definitions=5, terms=[3])
  rows = jax.tree.map(jnp.asarray, small.rows_of(thought.VOCABULARY, pairs, length=config.length))
  read = []

  def token_nll(params, config, batch, *, inputs, edits=None):
    read.append((np.asarray(inputs), edits))
    np.testing.assert_array_equal(batch.ids, rows.ids)  # what is to be said is whole
    return jnp.zeros(batch.ids.shape), batch.scored

  seen = {}
  with monkeypatch.context() as patched:
    patched.setattr(thought.small, "token_nll", token_nll)
    for arm in thought.HIDDEN:
      read.clear()
      world.loss(arm, params, rows, jax.random.key(1), jnp.asarray(0.9))
      seen[arm] = read[0]
  ids, solution = np.asarray(rows.ids), np.asarray(rows.scored) > 0
  question = ~solution & (ids != small.PAD)
  for arm, (inputs, edits) in seen.items():
    hidden = inputs == small.MASK
    np.testing.assert_array_equal(inputs[~hidden], ids[~hidden])
    share, _, of_question = thought.HIDDEN[arm]
    where = question if of_question else solution
    assert not hidden[~where].any() and abs(hidden[where].mean() - share) < 0.07
    assert (edits is not None) == (arm == thought.DROPOUT)
  plain = small.objective(world.shape, params, rows, jax.random.key(2), jnp.asarray(0.5))
  assert world.loss(thought.SFT, params, rows, jax.random.key(1), jnp.asarray(0.9)) == plain  # bit for bit
