"""Experts on disk: trained once, read back to the last bit, apart by recipe, gone with the code that made them."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import sentiment_experts
from experiments.tasks.sentiment_experts import Experts, Recipe

MODEL = types.SimpleNamespace(params={
    "embed": {"tokens": {"embedding": jnp.ones((5, 384))}}, "layers": {"kernel": jnp.ones((2, 3, 3))}})


def test_experts_are_kept(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path))
  trained = []

  def train(self, domain, seed):
    trained.append((domain, seed))
    grow = lambda x: x + (seed + 1) * jax.random.normal(jax.random.key(0), x.shape)
    return {**jax.tree.map(grow, self.base), "embed": self.base["embed"]}

  monkeypatch.setattr(Experts, "train", train)
  experts = Experts(Recipe(), MODEL)
  first = experts("movies", 0)
  again = Experts(Recipe(), MODEL)("movies", 0)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  jax.tree.map(np.testing.assert_array_equal, first, train(experts, "movies", 0))
  assert trained == [("movies", 0)] * 2
  delta = experts.vector("movies", 0)
  assert delta["embed"]["tokens"]["embedding"] is None
  np.testing.assert_array_equal(delta["layers"]["kernel"], first["layers"]["kernel"] - 1)

  experts("movies", 1), Experts(Recipe(steps=31), MODEL)("movies", 0)
  folders = sorted((tmp_path / "experiments").glob("*"))
  assert len(folders) == 2 and sum(len(list(f.glob("*.safetensors"))) for f in folders) == 3

  # Other code behind the same recipe: those experts go, the others stay.
  monkeypatch.setattr(sentiment_experts, "MADE_BY", (jnp,))
  Experts(Recipe(), MODEL)("movies", 0)
  assert trained[-1] == ("movies", 0) and len(trained) == 5
  assert len(list((tmp_path / "experiments").glob("*"))) == 2

  experts = Experts(Recipe(keep=False), MODEL)
  experts("movies", 0), experts("movies", 0)
  assert len(trained) == 7 and len(list((tmp_path / "experiments").glob("*"))) == 2
