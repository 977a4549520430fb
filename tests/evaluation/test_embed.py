"""Batches of `embed_texts`: few shapes, none larger than its texts need, and every text in its place."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.evaluation.embed import embed_texts


def words(n: int, first: int = 0) -> str:
  return " ".join(f"w{first + i}" for i in range(n))


@pytest.mark.parametrize("few,many", [(1, 20), (3, 16), (5, 33)])
def test_one_shape_for_each_length_and_no_larger_than_its_texts(few, many):
  tokenizer = Tokenizer(models.WordLevel({f"w{i}": i + 1 for i in range(100)}, unk_token="w0"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  texts = [words(20, i) for i in range(few)] + [words(3, i) for i in range(many)]
  texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
  shapes = []

  def first_and_length(ids, mask):
    shapes.append(ids.shape)
    return np.stack([ids[:, 0], mask.sum(1)], axis=1)

  out = embed_texts(first_and_length, texts, tokenizer, tokens_per_batch=256)
  want = [[int(text.split()[0][1:]) + 1, len(text.split())] for text in texts]
  np.testing.assert_array_equal(out, want)
  power = 1 << (few - 1).bit_length()
  assert set(shapes) == {(16, 16), (power, 24)} and len(shapes) == -(-many // 16) + 1
