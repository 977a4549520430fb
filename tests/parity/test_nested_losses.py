"""Losses of many sizes against those of sentence-transformers, in values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.stub_models import assert_same, layered_model, torch_model

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
LABELS = np.array([0, 0, 1, 1, 0])
mean = lambda loss: Mean.of(*loss).value


@pytest.fixture(scope="module")
def theirs():
  from sentence_transformers.sentence_transformer import losses

  return losses


def draw(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def of_columns(loss, labels=None):
  labels = None if labels is None else torch.tensor(labels)
  return lambda *columns: loss([{"sentence_embedding": column} for column in columns], labels)


def test_matryoshka(theirs):
  model, sides = torch_model(), list(draw(3, 5, 8))
  options = {"dims": (8, 4, 2), "weights": (1.0, 0.5, 0.25)}
  other = lambda loss: theirs.MatryoshkaLoss(model, loss, options["dims"], options["weights"])
  assert_same(lambda q, p, n: mean(ours.matryoshka(ours.multiple_negatives_ranking, **options)(q, p, n[:, None])),
              of_columns(other(theirs.MultipleNegativesRankingLoss(model))), sides)
  # Of how many triplets the mean is differs from size to size; the sum is of the means.
  assert_same(lambda x: mean(ours.matryoshka(ours.batch_all_triplet, **options)(x, LABELS)),
              of_columns(other(theirs.BatchAllTripletLoss(
                  model, theirs.BatchHardTripletLossDistanceFunction.cosine_distance, 0.2)), LABELS), sides[:1])


@pytest.mark.parametrize("weighting", ["log", pytest.param("uniform", marks=pytest.mark.exhaustive)])
def test_layers_and_dimensions(theirs, weighting):
  model, sides = layered_model(), list(draw(2, 3, 5, 8))
  stacked = lambda loss: lambda *columns: loss(
      [{"all_layer_embeddings": [layer[:, None] for layer in column]} for column in columns], None)
  inner = theirs.MultipleNegativesRankingLoss(model)
  options = {"n_layers_per_step": -1, "layer_weighting": weighting, "prior_layers_weight": 0.7, "kl_div_weight": 0.4}
  named = {"layer_weights": weighting, "prior_weight": 0.7, "kl_weight": 0.4}
  assert_same(lambda q, p: mean(ours.adaptive_layers(ours.multiple_negatives_ranking, **named)(q, p)),
              stacked(theirs.AdaptiveLayerLoss(model, inner, **options)), sides)
  assert_same(lambda q, p: mean(ours.matryoshka_2d(ours.multiple_negatives_ranking, dims=(8, 3), **named)(q, p)),
              stacked(theirs.Matryoshka2dLoss(model, inner, [8, 3], n_dims_per_step=-1, **options)), sides)


def test_token_losses_with_padding():
  """DenoisingAutoEncoderLoss: cross-entropy of the decoder over the tokens that are no padding."""
  logits, tokens = draw(3, 6, 9), np.array([[4, 5, 6, 7, 0, 0], [4, 8, 3, 2, 1, 5], [4, 5, 0, 0, 0, 0]])
  other = lambda x: torch.nn.functional.cross_entropy(
      x[:, :-1].reshape(-1, 9), torch.tensor(tokens[:, 1:]).reshape(-1), ignore_index=0)
  assert_same(lambda x: mean(ours.weighted_nll(x, jnp.asarray(tokens), jnp.asarray(tokens != 0))), other, [logits])
