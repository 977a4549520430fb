"""No pair that tests is nearly one that was learnt from or tuned on, or tests twice; batches hold no module twice."""

import dataclasses

import numpy as np

from experiments.transforms import personalized_code as study


def test_no_pair_that_tests_is_nearly_one_that_was_learnt_or_tests_again():
  config = dataclasses.replace(study.SMOKE, functions=200, train_pairs=40, asked=20, seeds=tuple(range(4)))
  world = study.World(config)
  words = [frozenset(sentence.lower().rstrip(".").split()) for sentence in world.functions.sentences]
  rounds = len(config.seeds) // len(config.projects)
  for project in range(len(config.projects)):
    of = lambda split, seed, project=project: world.rows_of(split, project, seed).tolist()
    assert of("train", 0) == of("train", 0) != of("train", 1)
    learnt = {row for seed in config.seeds for row in of("train", seed)} | set(of("validation", 100))
    tested = [row for i in range(rounds) for row in of("test", i * len(config.projects))]
    assert len(tested) == len(set(tested)) == rounds * config.asked
    assert not {words[i] for i in learnt} & {words[i] for i in tested}
    assert set(world.functions.packages[[*learnt, *tested]]) == {project}


def test_a_batch_holds_no_module_twice():
  own = np.array([0, 0, 1, 1, 2, 2, 3])
  batches = study.draw(np.arange(6), own, 5, 3, np.random.default_rng(0))
  assert batches.shape == (5, 3) and all(sorted(own[batch]) == [0, 1, 2] for batch in batches)
