"""Batches of `embed_texts` and `embed_images`: few shapes, none larger than needed, everything in its place."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.evaluation.embed import embed_images, embed_texts


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


@pytest.mark.parametrize("count,size,calls", [(1, 4, [1]), (4, 4, [4]), (5, 2, [2, 2, 2]), (3, 8, [3])])
def test_images_are_embedded_once_and_in_order_by_one_shape(count, size, calls):
  images, seen = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), []

  def embed(batch):
    seen.append(len(batch))
    return {"own": batch[:, 0, 0, 0], "grid": (np.repeat(batch, 3, axis=1) + 1.0,)}

  out = embed_images(embed, images, batch_size=size)
  assert seen == calls
  np.testing.assert_array_equal(out["own"], np.arange(count))
  np.testing.assert_array_equal(out["grid"][0], np.repeat(images, 3, axis=1) + 1.0)


def test_what_fills_up_a_batch_is_an_image_of_it():
  """Zeros in its place may be what a model has no finite answer to."""
  images = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1)
  np.testing.assert_array_equal(embed_images(lambda x: 1 / x, images, batch_size=2), 1 / images)


def test_images_refuses_what_it_cannot_embed():
  images = np.ones((3, 1, 1, 1), np.float32)
  with pytest.raises(ValueError, match="images must hold at least one image; got none"):
    embed_images(lambda x: x, images[:0])
  with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
    embed_images(lambda x: x, images, batch_size=0)
  with pytest.raises(ValueError, match="finite numbers; got others for images 2 to 2"):
    embed_images(lambda x: np.where(x == 0, np.nan, x), images * [[[[1]]], [[[2]]], [[[0]]]], batch_size=2)


def test_a_text_that_is_cut_ends_as_its_tokenizer_ends_it():
  from tokenizers import processors

  tokenizer = Tokenizer(models.WordLevel({"a": 1, "b": 2, "c": 3, "<s>": 4, "</s>": 5}, unk_token="c"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  read = []

  def embed(ids, mask):
    read.extend(np.asarray(ids)[np.asarray(mask).sum(axis=1) == 3].tolist())
    return np.zeros((len(ids), 2), np.float32)

  for template, wanted in (("$A", [2, 2, 3]), ("<s> $A", [4, 2, 2]), ("$A </s>", [2, 2, 5])):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 4), ("</s>", 5)])
    read.clear()
    embed_texts(embed, ["a", "b b c c"], tokenizer, max_length=3)
    assert [row[:3] for row in read] == [wanted], template
