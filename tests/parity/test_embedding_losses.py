"""Losses of embeddings against those of sentence-transformers and open_clip, in values and gradients."""

import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.stub_models import assert_same, torch_model

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
ROWS, DIM = 7, 9
LABELS = np.array([0, 0, 1, 1, 2, 2, 0])
mean = lambda loss: Mean.of(*loss).value
total = lambda loss: Mean.of(*loss).total


@pytest.fixture(scope="module")
def theirs():
  from sentence_transformers.sentence_transformer import losses

  return losses


@pytest.fixture(scope="module")
def sparse():
  from sentence_transformers.sparse_encoder import losses

  return losses


def draw(columns, *, seed=0, copies=True, positive=False):
  """Columns of embeddings near each other; the last row is the first again and the third nearly the fourth."""
  rng = np.random.default_rng(seed)
  topic = rng.normal(size=(ROWS, DIM))
  topic[2] = topic[3] + 0.1 * rng.normal(size=DIM)
  sides = [topic + rng.normal(size=topic.shape) for _ in range(columns)]
  if copies:
    for side in sides:
      side[-1] = side[0]
  return [np.maximum(side, 0).astype(np.float32) if positive else side.astype(np.float32) for side in sides]


def of_columns(loss, labels=None):
  labels = None if labels is None else torch.tensor(labels)
  return lambda *columns: loss([{"sentence_embedding": column} for column in columns], labels)


def negatives(columns):
  import jax.numpy as jnp

  return jnp.stack(columns, axis=1) if columns else None


@pytest.mark.parametrize("columns", [2, 3, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_in_batch(theirs, columns):
  embeddings, model = draw(columns), torch_model()
  both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
  assert_same(lambda q, p, *n: mean(ours.symmetric_multiple_negatives_ranking(q, p, negatives(n), temperature=0.1)),
              of_columns(theirs.MultipleNegativesRankingLoss(model, scale=10, **both)), embeddings)
  if columns == 2:
    assert_same(lambda q, p: mean(ours.mega_batch_margin(q, p)),
                of_columns(theirs.MegaBatchMarginLoss(model, use_mini_batched_version=False)), draw(2, copies=False))


@pytest.mark.parametrize("metric, margin", [
    ("euclidean", 2.0), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (
        ("euclidean", 5.0), ("cosine", 0.2), ("manhattan", 4.0)))])
def test_triplets(theirs, metric, margin):
  assert_same(lambda a, p, n: mean(ours.triplet(a, p, n, metric=metric, margin=margin)),
              of_columns(theirs.TripletLoss(
                  torch_model(), getattr(theirs.TripletDistanceMetric, metric.upper()), margin)), draw(3))


BATCH = {
    "batch_all_triplet": "BatchAllTripletLoss", "batch_hard_triplet": "BatchHardTripletLoss",
    "batch_semi_hard_triplet": "BatchSemiHardTripletLoss", "soft": "BatchHardSoftMarginTripletLoss"}


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("metric, margin", [
    ("euclidean", 2.0), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (
        ("euclidean", 5.0), ("cosine", 0.2)))])
@pytest.mark.parametrize("copies", [True, False])
def test_triplets_of_a_batch(theirs, name, metric, margin, copies):
  """Where rows are copies, which of two equal distances gets the gradient is each library's choice."""
  of_theirs = getattr(theirs.BatchHardTripletLossDistanceFunction, f"{metric}_distance")
  if name == "soft":
    loss = lambda x: mean(ours.batch_hard_triplet(x, LABELS, metric=metric, margin=None))
    other = theirs.BatchHardSoftMarginTripletLoss(torch_model(), of_theirs)
  else:
    loss = lambda x: mean(getattr(ours, name)(x, LABELS, metric=metric, margin=margin))
    other = getattr(theirs, BATCH[name])(torch_model(), of_theirs, margin)
  assert_same(loss, of_columns(other, LABELS), draw(1, copies=copies), gradients=not copies,
              tolerance=1e-3 if copies else 2e-5)  # theirs takes rounding for a distance


@pytest.mark.parametrize("metric, name", [
    ("cosine", "COSINE_DISTANCE"), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (
        ("euclidean", "EUCLIDEAN"), ("manhattan", "MANHATTAN")))])
def test_contrastive_pairs(theirs, metric, name):
  labels = np.array([True, False, True, False, True, True, True])
  margin = {"cosine": 0.9, "euclidean": 4.0, "manhattan": 10.0}[metric]
  options = {"distance_metric": getattr(theirs.SiameseDistanceMetric, name), "margin": margin}
  pairs = draw(2)
  assert_same(lambda a, b: mean(ours.contrastive_pairs(a, b, labels, metric=metric, margin=margin)),
              of_columns(theirs.ContrastiveLoss(torch_model(), **options), labels.astype(int)), pairs)
  for y in (labels, ~labels, np.ones(ROWS, bool), np.zeros(ROWS, bool)):
    assert_same(lambda a, b, y=y: total(ours.online_contrastive_pairs(a, b, y, metric=metric, margin=margin)),
                of_columns(theirs.OnlineContrastiveLoss(torch_model(), **options), y.astype(int)), pairs)


def test_scored_pairs(theirs):
  scores = np.array([0.1, 0.9, 0.5, 0.5, 0.0, 1.0, 0.1], np.float32)  # with ties
  pairs, model = draw(2), torch_model()
  assert_same(lambda a, b: mean(ours.cosine_regression(a, b, scores)),
              of_columns(theirs.CosineSimilarityLoss(model), scores), pairs)
  assert_same(lambda a, b: mean(ours.cosent(a, b, scores)), of_columns(theirs.CoSENTLoss(model), scores), pairs)
  assert_same(lambda a, b: mean(ours.angle(a, b, scores)), of_columns(theirs.AnglELoss(model), scores), pairs)


def test_contrastive_tension(theirs):
  same = np.arange(ROWS) % 3 == 0
  other = of_columns(theirs.ContrastiveTensionLoss(torch_model()), same.astype(np.float32))
  assert_same(lambda a, b: total(ours.contrastive_tension(a, b, same)), other, draw(2))


def test_classifier_of_pairs(theirs):
  import jax.numpy as jnp

  model = torch_model()
  loss = theirs.SoftmaxLoss.__new__(theirs.SoftmaxLoss)
  torch.nn.Module.__init__(loss)
  loss.model, loss.num_labels, loss.loss_fct = model, 3, torch.nn.CrossEntropyLoss()
  loss.concatenation_sent_rep = loss.concatenation_sent_difference = loss.concatenation_sent_multiplication = True
  loss.classifier = torch.nn.Linear(4 * DIM, 3)
  kernel, bias = (jnp.asarray(x.detach().numpy()) for x in (loss.classifier.weight, loss.classifier.bias))
  assert_same(lambda a, b: mean(ours.cross_entropy(ours.pair_features(a, b, product=True) @ kernel.T + bias, LABELS)),
              of_columns(loss, LABELS), draw(2))


def test_distillation(theirs):
  rng = np.random.default_rng(1)
  teacher, vectors = rng.normal(size=(ROWS, 4)).astype(np.float32), rng.normal(size=(ROWS, DIM)).astype(np.float32)
  columns, model = [x / 3 for x in draw(5)], torch_model()
  scores = lambda q, *c: ours.candidate_scores(q, negatives(c))
  assert_same(lambda *c: mean(ours.margin_mse(scores(*c), teacher)), of_columns(theirs.MarginMSELoss(model), teacher),
              columns)
  assert_same(lambda *c: mean(ours.distill_scores(scores(*c), teacher, temperature=0.5, teacher_temperature=2.0)),
              of_columns(theirs.DistillKLDivLoss(model, student_temperature=0.5, teacher_temperature=2.0), teacher),
              columns)
  for metric, name in (("cosine", "cosine"), ("mse", "mse"), ("euclidean", "l2")):
    assert_same(lambda x, metric=metric: mean(ours.feature_consistency(x, vectors, metric=metric)),
                of_columns(theirs.EmbedDistillLoss(model, name), vectors), draw(1))


def test_global_orthogonal(theirs):
  side = lambda x: mean(ours.global_orthogonal(x, mean_weight=2.0, second_moment_weight=0.5))
  assert_same(lambda a, b: (side(a) + side(b)) / 2, of_columns(theirs.GlobalOrthogonalRegularizationLoss(
      torch_model(), mean_weight=2.0, second_moment_weight=0.5)), draw(2))


@pytest.mark.parametrize("columns", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_splade(sparse, columns):
  model = torch_model()
  loss = sparse.SpladeLoss(model, sparse.SparseMultipleNegativesRankingLoss(model), 0.2, 0.3)
  assert_same(lambda q, p, *n: mean(ours.splade(q, p, negatives(n), query_weight=0.3, document_weight=0.2)),
              of_columns(loss), draw(columns, positive=True))
  assert_same(lambda x: mean(ours.flops(x, threshold=4)),
              sparse.FlopsLoss(model, threshold=4).compute_loss_from_embeddings, draw(1, positive=True))


def test_csr(sparse):
  arrays = draw(5)
  theirs = sparse.CSRReconstructionLoss(None, beta=0.1)

  def other(x, at_k, at_4k, auxiliary, pre_bias):
    values = theirs.compute_loss_from_embeddings([{
        "sentence_embedding_backbone": x, "decoded_embedding_k": at_k, "decoded_embedding_4k": at_4k,
        "decoded_embedding_aux": auxiliary, "decoded_embedding_k_pre_bias": pre_bias}])
    return values

  # The inputs are a frozen model's, and so is what the dead units are to give.
  x, *rest, pre_bias = arrays
  assert_same(lambda *outputs: mean(ours.csr_reconstruction(x, *outputs, x - pre_bias)),
              lambda *outputs: other(torch.tensor(x), *outputs, torch.tensor(pre_bias)), rest)


def test_open_clip():
  """ClipLoss and SigLipLoss of open_clip, written out."""
  F = torch.nn.functional

  def clip(a, b):
    logits = 1 / 0.07 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

  def siglip(a, b):
    logits = 10 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T - 3
    return -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)

  assert_same(lambda a, b: mean(ours.clip(a, b)), clip, draw(2))
  assert_same(lambda a, b: mean(ours.siglip(a, b, temperature=0.1, bias=-3.0)), siglip, draw(2))
