"""Stand-ins for the models of sentence-transformers, which give what they are given: both sides see one input."""

import numpy as np
import pytest


def torch_model():
  """A class of models: `forward` returns the embeddings among the features."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("sentence_transformers")

  class Given(torch.nn.Module):
    def forward(self, features, **_):
      return features

    def get_embedding_dimension(self):
      return None

  return Given()


def layered_model():
  """A model of the layers that are among the features, each `[batch, 1, dim]`."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("sentence_transformers")
  from types import SimpleNamespace

  from sentence_transformers import SentenceTransformer
  from sentence_transformers.sentence_transformer.modules import Transformer

  class Layers(Transformer):
    def __init__(self):
      torch.nn.Module.__init__(self)
      vars(self)["model"] = SimpleNamespace(config=SimpleNamespace(output_hidden_states=False))

    def forward(self, features):
      return {**features, "token_embeddings": features["all_layer_embeddings"][-1]}

  class Given(SentenceTransformer):
    def __init__(self):
      torch.nn.Sequential.__init__(self, Layers())

    def forward(self, features):
      output = self[0].forward(features)
      return {**output, "sentence_embedding": output["token_embeddings"][:, 0]}

    def get_embedding_dimension(self):
      return None

  return Given()


def cross_encoder():
  """A cross-encoder whose "texts" are scores: `(query, document)` scores what the document is."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("sentence_transformers")
  from sentence_transformers import CrossEncoder

  class Given(CrossEncoder):
    def __init__(self):
      torch.nn.Module.__init__(self)

    num_labels = 1
    device = torch.device("cpu")

    def preprocess(self, pairs, **_):
      return {"pairs": torch.stack([document for _, document in pairs])}

    def forward(self, features):
      return {"scores": features["pairs"]}

  return Given()


def value_and_grads(loss, arrays):
  """What a loss in PyTorch gives for arrays, and its gradient by each."""
  torch = pytest.importorskip("torch")
  tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in arrays]
  value = loss(*tensors)
  value = sum(value.values()) if isinstance(value, dict) else value
  value.backward()
  zeros = lambda t: np.zeros(t.shape, np.float32) if t.grad is None else t.grad.numpy()
  return value.item(), [zeros(t) for t in tensors]


def assert_same(ours, theirs, arrays, *, tolerance=2e-5, gradients=True):
  """Value and gradients of `ours(*arrays)`, a scalar, are those of `theirs(*tensors)`."""
  import jax
  import jax.numpy as jnp

  arrays = [np.asarray(x, np.float32) for x in arrays]
  value, grads = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(arrays)))))(*map(jnp.asarray, arrays))
  expected, expected_grads = value_and_grads(theirs, arrays)
  assert value != 0
  np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
  for got, want in zip(grads, expected_grads if gradients else [], strict=gradients):
    np.testing.assert_allclose(got, want, rtol=20 * tolerance, atol=tolerance * max(np.abs(want).max(), 1e-3))
