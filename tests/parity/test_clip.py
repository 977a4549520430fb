"""CLIP against transformers: both towers, their projections and the scale, from its files and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.models import clip, dual_encoder

VISION = dict(image_size=12, patch_size=4, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
              intermediate_size=40, initializer_range=0.2)
TEXT = dict(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=9, initializer_range=0.2)
# Row 1 is padded, and in row 2 the token that ends the text is met twice.
IDS = np.array([[27, 3, 4, 9, 8, 6, 29], [27, 5, 29, 1, 1, 1, 1], [27, 2, 29, 29, 4, 29, 29]])
MASK = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1] * 7])


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), want.detach().numpy()
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("eos", [2, 29])
def test_a_clip_equals_transformers_in_values_and_gradients_and_is_saved_back(eos, tmp_path):
  torch.manual_seed(0)
  model = transformers.CLIPModel(transformers.CLIPConfig(
      text_config=TEXT | {"eos_token_id": eos, "pad_token_id": 1, "bos_token_id": 27}, vision_config=VISION,
      projection_dim=12))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith("bias") or "class" in name or "projection" in name:
        parameter.normal_(std=0.3)
  model.eval().save_pretrained(tmp_path / "theirs")
  params, config = load_directory(tmp_path / "theirs")
  assert (config.dim, config.text.eos_id) == (12, None if eos == 2 else 29)
  pixels = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
  out = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK),
              pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), return_loss=True)
  out.loss.backward()

  def loss(params):
    images, texts = clip.embed_images(params, config, pixels), clip.embed_texts(params, config, IDS, MASK)
    scores = dual_encoder.logits(params, images, texts)
    own = lambda rows: -jnp.diag(jax.nn.log_softmax(rows, axis=1)).mean()
    return (own(scores) + own(scores.T)) / 2, (images, texts, scores)

  (value, (images, texts, scores)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  assert relative_error(images, out.image_embeds) < 1e-5
  assert relative_error(texts, out.text_embeds) < 1e-5
  assert relative_error(scores, out.logits_per_image) < 1e-5
  assert relative_error(value, out.loss) < 1e-5
  named = dict(model.named_parameters())
  for path, name in (("text", "text_model.embeddings.token_embedding.weight"),
                     ("vision", "vision_model.embeddings.position_embedding.weight")):
    got = grads["text"]["embed"]["tokens"]["embedding"] if path == "text" else grads["vision"]["embed"]["positions"][0]
    assert relative_error(got, named[name].grad) < 1e-4
  assert relative_error(grads["projection"]["text"]["kernel"].T, named["text_projection.weight"].grad) < 1e-4
  assert relative_error(grads["logit_scale"], named["logit_scale"].grad) < 1e-4

  save_directory(params, config, tmp_path / "ours")
  back = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
  with torch.no_grad():
    again = back(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK),
                 pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
  np.testing.assert_array_equal(again.logits_per_image, out.logits_per_image.detach())
