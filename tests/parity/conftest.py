"""The pretrained models in PyTorch's libraries, loaded once a process."""

import pytest


@pytest.fixture(scope="session")
def torch_smollm2():
  """SmolLM2-135M-Instruct in transformers, float32, and what its loader says of the names that it met."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from jaxft.formats import fetch

  model, info = transformers.AutoModelForCausalLM.from_pretrained(
      fetch("smollm2-135m"), dtype=torch.float32, output_loading_info=True)
  return model.eval(), info


@pytest.fixture(scope="session")
def sentence_minilm():
  """all-MiniLM-L6-v2 in sentence-transformers."""
  sentence_transformers = pytest.importorskip("sentence_transformers")
  from jaxft.formats import fetch

  return sentence_transformers.SentenceTransformer(str(fetch("minilm-l6")), device="cpu")
