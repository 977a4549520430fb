"""`jaxft.load`: vectors, scores and texts in a line, as the functions beneath give them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft
from jaxft.formats.heads import Head
from jaxft.formats.huggingface import save_directory
from jaxft.models import decoder, encoder, vision
from jaxft.recipes.model import answer
from tests import draws

TEXTS = ["a text", "another, which is longer"]


@pytest.fixture(scope="module")
def tiny_encoder():
  return jaxft.load("minilm-l6:tiny")


@pytest.fixture(scope="module")
def tiny_decoder():
  return jaxft.load("smollm2-135m:tiny")


def test_vectors_of_texts(tiny_encoder):
  ids = tiny_encoder.tokenizer.encode(TEXTS[0]).ids
  wanted = encoder.embed(tiny_encoder.params, tiny_encoder.config, np.array([ids]), np.ones((1, len(ids)), np.int32))
  found = tiny_encoder.encode(TEXTS)
  np.testing.assert_allclose(found[:1], wanted, rtol=1e-5, atol=1e-6)
  with jax.no_tracing():  # what was compiled for one call serves the next
    assert np.array_equal(tiny_encoder.encode(TEXTS), found)
  assert found.shape == (2, 48) and not np.allclose(found[0], found[1])
  assert np.allclose(tiny_encoder.encode(["a b c d"], max_length=3), tiny_encoder.encode(["a"]), atol=1e-6)
  with pytest.raises(ValueError, match="has no head that gives scores; encode gives its vectors"):
    tiny_encoder.logits(TEXTS)
  with pytest.raises(ValueError, match="must be a decoder"):
    tiny_encoder.generate(TEXTS)
  for wrong in (0, -1, 2.5, True):
    with pytest.raises(ValueError, match=f"max_length must be a number of tokens.*got {wrong}"):
      tiny_encoder.encode(TEXTS, max_length=wrong)
  with pytest.raises(TypeError, match="inputs must be a sequence of texts or images; got one, 'a text'"):
    tiny_encoder.encode("a text")


def test_scores_of_a_classifier_that_was_saved(tiny_encoder, tmp_path):
  layer = {"kernel": draws.normal(0, 48, 48), "bias": draws.normal(1, 48)}
  head = Head(draws.normal(2, 48, 2), draws.normal(3, 2), layer, ("no", "yes"))
  save_directory(tiny_encoder.params, tiny_encoder.config, tmp_path / "model", tokenizer=tiny_encoder.tokenizer,
                 head=head)
  model = jaxft.load(tmp_path / "model")
  ids = tiny_encoder.tokenizer.encode(TEXTS[1]).ids
  hidden, _ = encoder.hidden_states(model.params, model.config, np.array([ids]), np.ones((1, len(ids)), np.int32))
  wanted = jnp.tanh(hidden[:, 0] @ layer["kernel"] + layer["bias"]) @ head.kernel + head.bias
  np.testing.assert_allclose(model.logits(TEXTS)[1:], wanted, rtol=1e-4, atol=1e-5)
  assert "with a head of no, yes" in repr(model)
  np.testing.assert_allclose(model.encode(TEXTS), tiny_encoder.encode(TEXTS), rtol=1e-6)


def test_a_decoder_scores_and_continues(tiny_decoder):
  rows = [tiny_decoder.tokenizer.encode(text).ids for text in TEXTS]
  scores = tiny_decoder.logits(TEXTS)
  for row, found in zip(rows, scores, strict=True):
    hidden, *_ = decoder.hidden_states(tiny_decoder.params, tiny_decoder.config, np.array([row]))
    np.testing.assert_allclose(
        found[: len(row)], decoder.logits(tiny_decoder.params, tiny_decoder.config, hidden)[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(tiny_decoder.logits(np.array([rows[0]]))[0], tiny_decoder.logits(TEXTS[:1])[0])
  first, = tiny_decoder.generate(TEXTS[:1], max_new_tokens=1)
  likeliest = int(scores[0, len(rows[0]) - 1].argmax())
  assert first == tiny_decoder.tokenizer.decode([likeliest], skip_special_tokens=True)
  assert len(tiny_decoder.generate(TEXTS, chat=True, max_new_tokens=2, temperature=1.0)) == 2
  with pytest.raises(ValueError, match="must be an encoder"):
    tiny_decoder.encode(TEXTS)
  with pytest.raises(ValueError, match="inputs must hold at least one token each"):
    tiny_decoder.logits([""])
  with pytest.raises(TypeError, match="prompts must be a sequence of str"):
    tiny_decoder.generate("a text")


def test_vectors_and_scores_of_images(tmp_path):
  config = vision.VisionConfig(image_size=8, patch_size=4, dim=16, num_layers=1, num_heads=2, mlp_dim=16)
  head = Head(draws.normal(0, 16, 3), draws.normal(1, 3), None, ("a", "b", "c"))
  save_directory(vision.init(jax.random.key(0), config), config, tmp_path / "vit", head=head)
  model = jaxft.load(tmp_path / "vit")
  images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 200)]
  vectors = model.encode(images)
  wanted = np.stack([(image / 255 - 0.5) / 0.5 for image in images]).astype(np.float32)
  np.testing.assert_allclose(vectors, vision.embed(model.params, model.config, wanted), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(model.logits(images), vectors @ head.kernel + head.bias, rtol=1e-4, atol=1e-5)
  pictures = [pytest.importorskip("PIL.Image").fromarray(image) for image in images]
  np.testing.assert_array_equal(model.encode(pictures), vectors)
  with pytest.raises(ValueError, match="at least one image"):
    model.encode([])
  for wrong, words in ((pathlib.Path("a.png"), "inputs must be a sequence"), ([None], "image must be a path.*None")):
    with pytest.raises(TypeError, match=words):
      model.encode(wrong)


def test_a_model_is_shown_in_two_lines(tiny_encoder, tiny_decoder):
  assert repr(tiny_encoder).count("\n") == 1 and "encoder of 1," in repr(tiny_encoder)
  assert "decoder of" in repr(tiny_decoder) and len(repr(tiny_decoder)) < 300


@pytest.mark.parametrize("ids, said", [
    ([[3, 10**6]], r"ids in \[0, vocab_size = \d+\); got 1000000"), ([[-1]], r"ids in .*; got -1"),
    ([[1.5]], r"integer ids \[inputs, time\]; got float64 \[1, 1\]"), ([3], r"integer ids .* got int64 \[1\]"),
    ([[]], "integer ids")])
def test_ids_that_no_row_is_for_are_refused(tiny_decoder, ids, said):
  with pytest.raises(ValueError, match=said):
    tiny_decoder.logits(np.array(ids))


def test_what_is_no_text_is_named(tiny_encoder, tiny_decoder):
  for call, error, message in (
      (lambda: tiny_encoder.encode(["a", 3]), TypeError, r"inputs\[1\] must be a str; got 3"),
      (lambda: tiny_encoder.encode(["a"], max_length=0), ValueError, "max_length must be a number .* got 0"),
      (lambda: tiny_decoder.logits([b"a"]), TypeError, r"inputs\[0\] must be a str; got b'a'"),
      (lambda: tiny_decoder.logits([[1, 2]]), TypeError, r"inputs\[0\] must be a str; got \[1, 2\]"),
      (lambda: tiny_decoder.generate([]), ValueError, "prompts must hold at least one text; got none"),
      (lambda: tiny_decoder.generate([None]), TypeError, r"prompts\[0\] must be a str; got None"),
      (lambda: tiny_decoder.generate("a"), TypeError, "prompts must be a sequence of str, .* got the str 'a'"),
      (lambda: jaxft.load(3), TypeError, "name_or_path must be the name of a preset or a path; got 3")):  # pyright: ignore
    with pytest.raises(error, match=message):
      call()


def test_a_decoder_with_several_tokens_that_end_an_answer(tiny_decoder, tmp_path):
  import json

  plain = tiny_decoder.generate(["a text"], max_new_tokens=8)
  row, = answer(tiny_decoder, ["a text"], max_new_tokens=8, temperature=0.0)
  config, last = tiny_decoder.config, row["tokens"][2]
  length = row["tokens"].index(last) + 1
  for name in ("generation_config.json", "config.json"):
    folder = tmp_path / name.partition(".")[0]
    save_directory(tiny_decoder.params, config, folder, tokenizer=tiny_decoder.tokenizer)
    said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**said, "eos_token_id": [config.eos_id, last]}))
    model = jaxft.load(folder)
    assert model.end_ids == (last,) and model.config == config
    # It ends there, as transformers ends it; and what is saved of it keeps both.
    found, = answer(model, ["a text"], max_new_tokens=8, temperature=0.0)
    assert found["tokens"] == row["tokens"][:length] != row["tokens"] and plain[0] != model.generate(
        ["a text"], max_new_tokens=8)[0]
    save_directory(model.params, config, folder / "again", end_ids=model.end_ids)
    kept = json.loads((folder / "again/generation_config.json").read_text())
    assert kept["eos_token_id"] == [config.eos_id, last] and kept["bos_token_id"] == config.bos_id
  (folder / "generation_config.json").write_text('{"eos_token_id": [-1]}')
  with pytest.raises(ValueError, match="generation_config.json: eos_token_id must be tokens below .* got -1"):
    jaxft.load(folder)


def test_how_a_model_answers_is_kept_in_what_is_saved_of_it(tiny_decoder, tmp_path):
  import json

  eos = tiny_decoder.config.eos_id
  said = {"_from_model_config": True, "do_sample": True, "eos_token_id": [7, eos], "temperature": 0.6, "top_p": 0.95}
  save_directory(tiny_decoder.params, tiny_decoder.config, tmp_path / "base", tokenizer=tiny_decoder.tokenizer)
  (tmp_path / "base/generation_config.json").write_text(json.dumps(said))
  model = jaxft.load(tmp_path / "base")
  assert model.generation == said and model.end_ids == (7,)
  again = lambda name: json.loads((tmp_path / name / "generation_config.json").read_text())
  kept = lambda name, **options: save_directory(model.params, model.config, tmp_path / name, **options)
  kept("same", end_ids=model.end_ids, generation=model.generation)
  assert again("same") == said
  # Tokens that end an answer and that the file lacks are added to it.
  kept("more", end_ids=(9,), generation={**said, "eos_token_id": 7})
  assert again("more") == {**said, "eos_token_id": [7, eos, 9]}
  kept("none")
  assert not (tmp_path / "none/generation_config.json").exists()
