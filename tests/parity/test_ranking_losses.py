"""Losses of scores against those of sentence-transformers' cross-encoders, in values and gradients."""

import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.stub_models import assert_same, cross_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
ROWS, LONGEST = 4, 6
LENGTHS = np.array([6, 3, 5, 1])
WHERE = np.arange(LONGEST) < LENGTHS[:, None]
mean = lambda loss: Mean.of(*loss).value


@pytest.fixture(scope="module")
def theirs():
  from sentence_transformers.cross_encoder import losses

  return losses


def lists(seed=0):
  """Scores of lists of several lengths, a few below 0, and grades with ties."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 4, (ROWS, LONGEST)).astype(np.float32)
  labels[0, :3] = [2, 2, 0]
  return [rng.normal(size=(ROWS, LONGEST)).astype(np.float32) * 2], labels


def of_lists(loss, labels):
  def run(scores):
    documents = [[scores[i, j] for j in range(n)] for i, n in enumerate(LENGTHS)]
    grades = [torch.tensor(row[:n]) for row, n in zip(labels, LENGTHS, strict=True)]
    return loss([list(range(ROWS)), documents], grades)

  return run


def test_pointwise(theirs):
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=9).astype(np.float32), rng.integers(0, 2, 9).astype(np.float32)
  model = cross_encoder()
  pairs = lambda loss, y: lambda x: loss([list(range(len(x))), list(x)], torch.tensor(y))
  assert_same(lambda x: mean(ours.binary_cross_entropy(x, labels, positive_weight=3.0)),
              pairs(theirs.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(3.0)), labels), [scores])
  assert_same(lambda x: mean(ours.squared_error(x, labels)), pairs(theirs.MSELoss(model), labels), [scores])
  classes, logits = rng.integers(0, 4, 9), rng.normal(size=(9, 4)).astype(np.float32)
  assert_same(lambda x: mean(ours.cross_entropy(x, classes, label_smoothing=0.2)),
              pairs(theirs.CrossEntropyLoss(model, label_smoothing=0.2), classes), [logits])


def test_columns_of_candidates(theirs):
  rng = np.random.default_rng(0)
  scores, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
  model = cross_encoder()

  def columns(loss):
    def run(x):
      labels = torch.tensor(teacher[:, :1] - teacher[:, 1:])
      return loss([list(range(len(x))), *(list(x[:, j]) for j in range(4))], labels)

    return run

  assert_same(lambda x: mean(ours.margin_mse(x, teacher)), columns(theirs.MarginMSELoss(model)), [scores])

  import jax
  import jax.numpy as jnp

  # One candidate of each row's own, and no other row's: what is drawn at random there is left out.
  loss = theirs.MultipleNegativesRankingLoss(model, num_negatives=0)
  loss.get_in_batch_negatives = lambda *_: []
  own = lambda x: loss([list(range(len(x))), *([t[None] for t in x[:, j]] for j in range(4))], None)
  assert_same(lambda x: mean(ours.info_nce(jax.nn.sigmoid(x), jnp.zeros(5, int), temperature=0.1)), own, [scores])


@pytest.mark.parametrize("name", ["list_net", "list_mle", "position_aware", "rank_mse", "rank_net"])
def test_lists(theirs, name):
  scores, labels = lists()
  model = cross_encoder()
  # Equal labels have no order: each library keeps its own, so that ListMLE is given lists that are in order.
  order = -np.tile(np.arange(LONGEST, dtype=np.float32), (ROWS, 1))
  position_aware = lambda *args, **kwargs: ours.list_mle(*args, position_aware=True, **kwargs)
  loss, other, labels = {
      "list_net": (ours.list_net, theirs.ListNetLoss(model), labels),
      "list_mle": (ours.list_mle, theirs.ListMLELoss(model), order),
      "position_aware": (position_aware, theirs.PListMLELoss(model), order),
      "rank_mse": (ours.rank_mse, theirs.ADRMSELoss(model), labels),
      "rank_net": (ours.rank_net, theirs.RankNetLoss(model, reduction_log="natural"), labels),
  }[name]
  assert_same(lambda x: mean(loss(x, labels, where=WHERE)), of_lists(other, labels), scores)


def test_list_mle_sorts_by_label(theirs):
  scores, _ = lists()
  labels = np.random.default_rng(1).permuted(np.tile(np.arange(LONGEST, dtype=np.float32), (ROWS, 1)), axis=1)
  assert_same(lambda x: mean(ours.list_mle(x, labels, where=WHERE)),
              of_lists(theirs.ListMLELoss(cross_encoder(), respect_input_order=False), labels), scores)


SCHEMES = {"none": "NoWeightingScheme", "ndcg1": "NDCGLoss1Scheme", "ndcg2": "NDCGLoss2Scheme",
           "lambda_rank": "LambdaRankScheme", "ndcg2++": "NDCGLoss2PPScheme"}


@pytest.mark.parametrize("scheme, k", [
    ("ndcg2++", None), ("ndcg2++", 2), ("ndcg1", None),
    *(pytest.param(scheme, k, marks=pytest.mark.exhaustive) for scheme in SCHEMES for k in (None, 1, 3))])
def test_lambda_loss(theirs, scheme, k):
  scores, labels = lists()
  other = theirs.LambdaLoss(cross_encoder(), getattr(theirs, SCHEMES[scheme])(), k=k, sigma=1.5)
  assert_same(lambda x: mean(ours.lambda_loss(x, labels, scheme=scheme, k=k, sigma=1.5, where=WHERE)),
              of_lists(other, labels), scores)
