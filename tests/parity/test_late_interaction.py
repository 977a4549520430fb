"""Losses of many vectors a text against those of sentence-transformers, in values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.stub_models import assert_same

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
ROWS, TIME, DIM = 4, 5, 6
mean = lambda loss: Mean.of(*loss).value


@pytest.fixture(scope="module")
def theirs():
  from sentence_transformers.multi_vector_encoder import losses

  return losses


def draw(columns):
  rng = np.random.default_rng(0)
  masks = [np.arange(TIME) < rng.integers(1, TIME + 1, (ROWS, 1)) for _ in range(columns)]
  return [rng.normal(size=(ROWS, TIME, DIM)).astype(np.float32) / 2 for _ in range(columns)], masks


def of_columns(loss, masks, labels=None):
  """Through a model that gives what it is given."""
  loss.model = lambda features, **_: features
  features = lambda x, m: {"token_embeddings": x, "attention_mask": torch.tensor(m)}
  return lambda *columns: loss([features(x, m) for x, m in zip(columns, masks, strict=True)],
                               None if labels is None else torch.tensor(labels))


def test_late_interaction(theirs):
  columns, masks = draw(4)
  teacher = np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)
  stack = lambda x: jnp.stack(x, axis=1)
  candidates = lambda q, *c: ours.maxsim_candidates(
      q, stack(c), query_mask=masks[0], candidate_mask=np.stack(masks[1:], 1))
  cases = {
      "MultipleNegativesRankingLoss": lambda q, p, *n: ours.late_interaction(
          q, p, stack(n), query_mask=masks[0], positive_mask=masks[1], negative_mask=np.stack(masks[2:], 1),
          temperature=0.5),
      "DistillKLDivLoss": lambda *c: ours.distill_scores(candidates(*c), teacher),
      "MarginMSELoss": lambda *c: ours.margin_mse(candidates(*c), teacher)}
  for name, loss in cases.items():
    other = getattr(theirs, f"MultiVector{name}")
    options = {"scale": 2.0} if name.startswith("Multiple") else {}
    module = other.__new__(other)
    torch.nn.Module.__init__(module)
    other.__init__(module, None, **options)
    labels = None if name.startswith("Multiple") else teacher
    assert_same(lambda *c, loss=loss: mean(loss(*c)), of_columns(module, masks, labels), columns)
