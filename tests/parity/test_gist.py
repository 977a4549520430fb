"""Our contrastive losses against those of sentence-transformers, in values and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jaxft.losses import guided_info_nce, multiple_negatives_ranking
from tests.parity.libraries import library

torch = library("torch")
theirs = library("sentence_transformers.sentence_transformer.losses")
transformers = library("transformers")


def given(key: str):
  """A model that returns the embeddings it is given, so that the losses see the same numbers and give gradients."""

  class Given(torch.nn.Module):
    def __init__(self):
      super().__init__()
      words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
      self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
      self.max_seq_length = 8

    def forward(self, features):
      return {"sentence_embedding": features[key]}

  return Given()


def draw(columns, rows=7, dim=16, guide_dim=12):
  """Student and guide embeddings with some structure: positives near their queries, a few near-duplicates."""
  rng = np.random.default_rng(0)
  sides = []
  for width in (dim, guide_dim):
    topic = rng.normal(size=(rows, width))
    topic[1] = topic[0] + 0.1 * rng.normal(size=width)
    sides.append([(topic + 0.7 * rng.normal(size=topic.shape)).astype(np.float32) for _ in range(columns)])
  return sides


def torch_value_and_grad(make_loss, student, guide):
  embeddings = [torch.tensor(x, requires_grad=True) for x in student]
  features = [{"student": s, "guide": torch.tensor(g)} for s, g in zip(embeddings, guide, strict=True)]
  loss = make_loss()(features, None)
  loss.backward()
  return loss.item(), [e.grad.numpy() for e in embeddings]


def assert_same(ours, student, expected, *, tolerance):
  value, grads = jax.value_and_grad(lambda s: jnp.mean(ours(s)))([jnp.asarray(x) for x in student])
  np.testing.assert_allclose(value, expected[0], rtol=tolerance)
  for got, want in zip(grads, expected[1], strict=True):
    np.testing.assert_allclose(got, want, rtol=10 * tolerance, atol=tolerance * np.abs(want).max())


def with_negatives(columns):
  """(query, positive, negative [batch, 1, dim] or None)."""
  query, positive, *rest = columns
  return query, positive, rest[0][:, None] if rest else None


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize(
    "ours, options",
    [
        ({}, {}),
        ({"margin": 0.1}, {"margin": 0.1}),
        ({"margin": 0.2, "strategy": "relative"}, {"margin": 0.2, "margin_strategy": "relative"}),
        ({"margin": -0.05, "strategy": "relative"}, {"margin": -0.05, "margin_strategy": "relative"}),
        ({"queries": False}, {"contrast_anchors": False}),
        ({"positives": False}, {"contrast_positives": False}),
        ({"queries": False, "positives": False, "temperature": 0.1},
         {"contrast_anchors": False, "contrast_positives": False, "temperature": 0.1}),
    ],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "defaults",
)
def test_gist_embed_loss(columns, ours, options):
  student, guide = draw(columns)
  make = lambda: theirs.GISTEmbedLoss(given("student"), given("guide"), **options)
  expected = torch_value_and_grad(make, student, guide)
  guides = with_negatives([jnp.asarray(g) for g in guide])
  assert_same(
      lambda s: guided_info_nce(*with_negatives(s), *guides, **ours)[0], student, expected, tolerance=2e-5
  )


def test_the_guide_matters_in_these_cases():
  student, guide = draw(3)
  args = [jnp.asarray(x) for x in student], [jnp.asarray(x) for x in guide]
  guided, _ = guided_info_nce(*with_negatives(args[0]), *with_negatives(args[1]))
  plain, _ = multiple_negatives_ranking(*with_negatives(args[0]), temperature=0.01, queries=True, positives=True)
  assert np.max(np.abs(guided - plain)) > 0.1


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_multiple_negatives_ranking_loss(columns):
  student, guide = draw(columns)
  expected = torch_value_and_grad(lambda: theirs.MultipleNegativesRankingLoss(given("student")), student, guide)

  def ours(s):
    negative = jnp.stack(s[2:], axis=1) if columns > 2 else None
    return multiple_negatives_ranking(s[0], s[1], negative)[0]

  assert_same(ours, student, expected, tolerance=2e-5)


def test_extended_info_nce_is_the_joint_form_of_three_directions():
  student, guide = draw(2)
  directions = ("query_to_doc", "query_to_query", "doc_to_doc")
  expected = torch_value_and_grad(
      lambda: theirs.MultipleNegativesRankingLoss(given("student"), directions=directions), student, guide
  )
  ours = lambda s: multiple_negatives_ranking(*s, queries=True, positives=True)[0]
  assert_same(ours, student, expected, tolerance=2e-5)
