"""The projects' splits hold no near-duplicates on two sides, and what each way of personalizing costs."""

import jax
import numpy as np

from experiments.transforms import personalized_code as task
from jaxft.adapters import prefix
from jaxft.models.cut import cut_model


def test_no_pair_that_is_tested_is_nearly_one_that_was_learnt():
  config = task.Config()
  pairs = task.load_projects(config)
  label = task.clusters(pairs)
  splits = task.split_projects(config, pairs, label, seed=0)
  groups = np.array(pairs.groups)
  assert set(groups) == set(config.projects) == set(splits)
  for project, parts in splits.items():
    assert len(parts["train"]) == config.train_pairs and len(parts["test"]) == config.test_pairs
    assert all((groups[rows] == project).all() for rows in parts.values())
    for part in ("validation", "test"):
      assert not set(label[parts[part]]) & set(label[parts["train"]])
  words = [frozenset(sentence.lower().rstrip(".").split()) for sentence in pairs.positives]
  learnt = {words[i] for parts in splits.values() for i in parts["train"]}
  assert not learnt & {words[i] for parts in splits.values() for i in parts["test"]}
  again, other = (task.split_projects(config, pairs, label, seed)["chex"]["test"].tolist() for seed in (0, 1))
  assert again == splits["chex"]["test"].tolist() != other


def test_costs_follow_the_layers_that_the_gradient_crosses(minilm):
  config = task.Config(projects=("chex",))
  texts = task.tokens(minilm, task.load_projects(config), config.length).pairs(range(8))
  _, upper = cut_model(minilm.params, minilm.config, 5)
  start = prefix(minilm.config, config.prefix_length).init(jax.random.key(0))
  costs = {}
  for arm, way in task.ways(config, minilm, minilm.params, start, upper).items():
    batch = texts if arm != task.BLOCK else task.Stored(*texts, np.zeros((*texts.ids.shape, 384), np.float32))
    costs[arm] = task.cost_of(way, batch, task.objective(way.config, way.adapter, 0.05))
  share = {arm: cost["flops_per_step"] / costs[task.METHOD]["flops_per_step"] for arm, cost in costs.items()}
  assert share[task.BLOCK] < 0.18 and 0.6 < share[task.EMBEDDINGS] < 0.72 and share[task.LORA] < 0.75
  bytes_of = {arm: cost["bytes_per_project"] for arm, cost in costs.items()}
  assert bytes_of[task.PREFIX] < bytes_of[task.LORA] < bytes_of[task.BLOCK] < bytes_of[task.EMBEDDINGS]
