"""Edits of words, and what else is made of examples: what is kept, how much is changed, and that no text is lost."""

from collections import Counter

import jax
import numpy as np
import optax
import pytest

from jaxft import data
from jaxft.data.augmentation.easy import STOP_WORDS, plain_words
from jaxft.data.builders import wordnet

WORDS = "the quick brown fox jumps over the lazy dog and a brown bear who never runs away at all".split()
SYNONYMS = {"quick": ["fast", "swift"], "brown": ["dark tan"], "dog": ["hound"], "the": ["that"], "never": ["seldom"]}


def edit(operation, seed=0, words=WORDS, **options):
  return data.text_edit(np.random.default_rng(seed), words, operation=operation, synonyms=SYNONYMS.get, **options)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_edits_are_as_many_as_the_rate_says_and_one_at_the_least(rate):
  count = max(1, int(rate * len(WORDS)))
  for seed in range(20):
    swapped = edit("swap", seed, rate=rate)
    assert Counter(swapped) == Counter(WORDS)
    assert sum(a != b for a, b in zip(swapped, WORDS, strict=True)) <= 2 * count
    replaced = edit("synonym", seed, rate=rate)
    gone = {"quick", "brown", "dog", "never"} - set(replaced)
    assert len(gone) == min(count, 4)
    assert replaced.count("dark") == (2 if "brown" in gone else 0)  # wherever it stands, and as two words
    assert "that" not in replaced  # a stop word stays
    more = edit("insert", seed, rate=rate)
    new = [word for word in more if word not in WORDS]
    assert [word for word in more if word in WORDS] == WORDS
    assert set(new) <= {"fast", "dark", "tan", "hound", "that", "seldom"} and count <= len(new) <= 2 * count


def test_deletion_keeps_order_and_a_word():
  kept = [len(edit("delete", seed, rate=0.3)) for seed in range(300)]
  assert np.mean(kept) == pytest.approx(0.7 * len(WORDS), rel=0.03)
  rest = iter(WORDS)
  assert all(word in rest for word in edit("delete", rate=0.5))
  assert edit("delete", rate=0.0) == WORDS and edit("delete", words=["one"], rate=1.0) == ["one"]
  assert edit("delete", words=["a", "b"], rate=1.0) in (["a"], ["b"])


def test_protected_words_stay_where_they_are():
  at = WORDS.index("never")
  for seed in range(30):
    assert "never" in edit("delete", seed, rate=0.9, protected={"never"})
    assert "never" in edit("synonym", seed, rate=1.0, protected={"never"})
    assert edit("swap", seed, rate=1.0, protected={"never"})[at] == "never"
  assert edit("swap", words=["not", "good"], protected={"not"}) == ["not", "good"]


def test_words_are_as_before_where_nothing_can_be_edited():
  for operation in ("synonym", "insert"):
    assert data.text_edit(
        np.random.default_rng(0), ["xyz", "the"], operation=operation, synonyms=lambda word: None) == ["xyz", "the"]
  assert edit("swap", words=["one"]) == ["one"]
  assert "the" in STOP_WORDS and len(STOP_WORDS) > 120


@pytest.mark.parametrize("count", [1, 4, 9])
def test_eda_gives_so_many_variants_and_the_sentence(count):
  made = lambda seed: data.easy_data_augmentation(
      np.random.default_rng(seed), "It's the Quick, brown fox!", count=count, synonyms=SYNONYMS.get)
  assert len(made(0)) == count + 1 and made(0)[-1] == "its the quick brown fox"
  assert made(0) == made(0) and any(made(0) != made(seed) for seed in range(1, 5))
  assert all(made(0)) and plain_words("Größe 12-fach") == ["größe", "fach"]


def test_nearest_words_are_those_of_the_highest_cosine():
  table = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
  vocabulary = {f"{chr(97 + i % 26)}{'xy'[i // 26]}": i for i in range(38)} | {"##ing": 38, "[CLS]": 39}
  names = {row: word for word, row in vocabulary.items()}
  unit = table / np.linalg.norm(table, axis=1, keepdims=True)
  synonyms = data.nearest_word_synonyms(table, vocabulary, k=3)
  for row in (0, 7, 37):
    order = [i for i in np.argsort(-unit @ unit[row]) if i != row and i < 38][:3]
    assert synonyms(names[row]) == [names[i] for i in order]
  assert synonyms("##ing") == [] and len(data.nearest_word_synonyms(table, {"a": 0, "b": 1})("a")) == 1


def test_wordnet_synonyms_are_the_other_words_of_a_words_sets():
  sets = [wordnet.Synset(["Film", "movie"], "", []), wordnet.Synset(["movie", "motion picture", "film"], "", []),
          wordnet.Synset(["film", "coating"], "", [])]
  synonyms = data.wordnet_synonyms(sets)
  assert synonyms("film") == ["movie", "motion picture", "coating"] and synonyms("coating") == ["film"]
  assert synonyms("films") == []


def test_back_translation_keeps_order_over_batches():
  texts = [f"text {i}" for i in range(7)]
  sizes = []
  forward = lambda batch: sizes.append(len(batch)) or [t[::-1] for t in batch]
  assert data.back_translate(texts, forward, lambda batch: [t[::-1] for t in batch], batch_size=3) == texts
  assert sizes == [3, 3, 1]
  assert data.back_translate([], forward, forward) == []


def test_two_views_are_drawn_apart_and_again_the_same_in_a_stream():
  drop = lambda rng, text: " ".join(data.text_edit(rng, text.split(), operation="delete", rate=0.5))
  records = [{"text": " ".join(WORDS), "label": i} for i in range(6)]
  views = data.stream(records, seed=0, random_map=data.two_views(drop))
  first = views[0]
  assert first["anchor"] != first["positive"] and first["text"] == " ".join(WORDS)
  assert views[0] == first and views[6]["anchor"] != first["anchor"]


def test_mixup_loss_is_that_of_both_labels():
  keys = jax.random.split(jax.random.key(0), 3)
  x, y = jax.random.normal(keys[0], (6, 3, 2)), jax.nn.one_hot(np.arange(6) % 4, 4)
  for per_example in (False, True):
    mixed, targets = data.mixup(keys[1], x, y, alpha=0.5, per_example=per_example)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    # Whatever is linear mixes alike, so the labels tell share and partner.
    share, partner = np.linalg.lstsq(
        np.asarray(x.reshape(6, -1)).T, np.asarray(mixed.reshape(6, -1)).T)[0].T, np.arange(6)
    if per_example:
      assert len({round(float(share[i, i]), 3) for i in partner}) > 2
    np.testing.assert_allclose(share @ np.asarray(x.reshape(6, -1)), mixed.reshape(6, -1), atol=1e-5)
    np.testing.assert_allclose(share @ np.asarray(y), targets, atol=1e-5)
  logits = jax.random.normal(keys[2], (6, 4))
  soft = optax.softmax_cross_entropy(logits, targets)
  hard = -np.asarray(jax.nn.log_softmax(logits))  # [6, 4]
  np.testing.assert_allclose(soft, np.sum(share @ np.asarray(y) * hard, axis=1), rtol=1e-4)


@pytest.mark.parametrize(("call", "message"), [
  (lambda: edit("replace"), "operation must be one of synonym, insert, swap, delete; got 'replace'"),
  (lambda: edit("swap", rate=1.5), r"rate must lie in \[0, 1\]"),
  (lambda: edit("swap", words=[]), "words must hold at least one"),
  (lambda: data.text_edit(np.random.default_rng(0), WORDS, operation="insert"), "synonyms must be given for operation"),
  (lambda: data.easy_data_augmentation(np.random.default_rng(0), "12!"), "sentence must have a letter; got '12!'"),
  (lambda: data.easy_data_augmentation(np.random.default_rng(0), "a", count=0), r"count must lie in \[1, inf\)"),
  (lambda: data.easy_data_augmentation(np.random.default_rng(0), "a", rates={}), "rates must have at least one"),
  (lambda: data.nearest_word_synonyms(np.ones((2, 2)), {"a": 0, "b": 2}), r"vocabulary must name rows in \[0, 2\)"),
  (lambda: data.nearest_word_synonyms(np.ones((2, 2)), {"a": 0}), "words must be at least two of the vocabulary"),
  (lambda: data.back_translate(["a"], lambda t: t, lambda t: []), "backward must give one text for each; got 0 for 1"),
  (lambda: data.two_views(lambda rng, x: x)({"body": ""}, np.random.default_rng(0)), "field must be one of a record's"),
  (lambda: data.mixup(jax.random.key(0), np.ones((2, 2)), np.ones((2, 2)), alpha=0.0), r"alpha must lie in \(0, inf\)"),
])
def test_what_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_one_str_is_no_list_of_words():
  with pytest.raises(TypeError, match="words must be a sequence of str"):
    edit("swap", words="a sentence")
