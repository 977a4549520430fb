"""Every method that mergekit 0.1.5 has, element by element, on leaves with the shapes of real ones."""

import functools

import ml_dtypes
import numpy as np
import pytest

from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS, REQUIRED, streams
from jaxft.merging.kernels.random_bits import probability, random_integers
from jaxft.merging.kernels.trims import keep_probabilities
from tests.parity.libraries import library

torch = library("torch")
sparsify, api, registry = map(library, (
    "mergekit.sparsify", "mergekit.merge_methods.api", "mergekit.merge_methods.registry"))

W = {"weight": [1.0, -0.3, 0.6]}
TRIMMED = W | {"density": [0.2, 0.7, 1.0]}
CASES = [
    ("linear", W, {}), ("linear", W, {"normalize": False}),
    ("slerp", {}, {"t": 0.3}), ("slerp", {}, {"t": 1.0}),
    ("nuslerp", {"weight": [1.0, 2.0]}, {}),
    ("nuslerp", {"weight": [1.0, 2.0]}, {"nuslerp_flatten": False}),
    ("nuslerp", {"weight": [1.0, 2.0]}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", {"weight": [1.0, 0.3, 0.6]}, {}), ("karcher", {}, {}),
    ("model_stock", {}, {}), ("model_stock", {}, {"filter_wise": True}),
    ("passthrough", {"scale": [1.3]}, {}), ("passthrough", {}, {}),
    ("nearswap", {}, {"t": 0.02}), ("arcee_fusion", {}, {}),
    ("ram", {}, {"epsilon": 0.05}), ("ramplus_tl", {}, {"epsilon": 0.05}),
    ("sce", {}, {}), ("sce", {}, {"select_topk": 0.3}),
    ("task_arithmetic", W, {"lambda": 0.7}), ("task_arithmetic", W, {"normalize": True}),
    ("ties", TRIMMED, {}), ("ties", TRIMMED, {"normalize": False, "lambda": 0.5, "rescale": True}),
    ("breadcrumbs", TRIMMED, {}), ("breadcrumbs", TRIMMED | {"gamma": [0.1, 0.5, 0.2]}, {}),
    ("breadcrumbs_ties", TRIMMED, {}),
    ("dare_linear", TRIMMED, {}), ("dare_linear", TRIMMED, {"rescale": False}), ("dare_ties", TRIMMED, {}),
    ("della", TRIMMED, {}), ("della_linear", TRIMMED, {}), ("della", TRIMMED | {"epsilon": [0.1, 0.2, 0.05]}, {}),
]


def leaves(count, shape=(96, 80), *, quantized=False):
  """A base and fine-tunes of it. Quantized: as from bfloat16 checkpoints, whose differences tie."""
  rng = np.random.default_rng(0)
  base = 0.3 * rng.standard_normal(shape)
  tunes = [base + 0.1 * rng.standard_normal(shape) for _ in range(count)]
  finish = lambda x: x.astype(ml_dtypes.bfloat16 if quantized else np.float32).astype(np.float32)
  return [finish(t) for t in tunes], finish(base)


def both(name, per_model, parameters, monkeypatch, **options):
  """`(ours, theirs)`; where random numbers are drawn, theirs are ours."""
  method = METHODS[name]
  count = len(next(iter(per_model.values()), ())) or (method.most or 3)
  models, base = leaves(count, **options)
  drawn = {"streams": streams(0, "layer.weight", count)} if method.random else {}
  settings = method.settings(per_model, parameters, **drawn)
  uses_base = method.base != "ignored"
  ours = merge_leaf(method.leafwise, models, base if uses_base else None, settings)

  if method.random:
    kept = iter([(d, s) for d, s in zip(per_model["density"], drawn["streams"], strict=True) if d < 1])

    def bernoulli(p):
      _, numbers = next(kept)
      numbers = random_integers(numbers, 0, base)
      p = p.numpy().astype(np.float64)
      low, high = p.min(), p.max()
      if low == high:
        return torch.tensor(numbers < probability(low))
      # Their probabilities on our grid: a rank's, in float32, may lie on the other side of the number drawn.
      table = keep_probabilities(p.shape[1], density=(low + high) / 2, epsilon=(high - low) / 2)
      return torch.tensor(numbers < table[np.rint((p - low) / (high - low) * (p.shape[1] - 1)).astype(int)])

    monkeypatch.setattr(sparsify.torch, "bernoulli", bernoulli)
  given = {k: (dict(enumerate(v, 1)) if k in method.per_model else v) for k, v in {**per_model, **parameters}.items()}
  tensors = [torch.tensor(x) for x in ([base] if uses_base else []) + models]
  ids = range(0 if uses_base else 1, count + 1)
  theirs = api.merge_tensors(tensors, name, parameters=given, ids=ids, base_index=0 if uses_base else None)
  return ours, theirs.numpy()


@pytest.mark.parametrize("name, per_model, parameters", CASES)
def test_same_as_mergekit(name, per_model, parameters, monkeypatch):
  ours, theirs = both(name, per_model, parameters, monkeypatch)
  differing = np.abs(ours - theirs) > 1e-6
  # arcee_fusion: their divergence of a row has an error of 1e-7 in float32, enough to move an entry over the threshold.
  allowed = 8 if name == "arcee_fusion" else 0
  assert differing.sum() <= allowed, np.abs(ours - theirs).max()


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_small_leaves_are_those_of_the_kernels_in_float64(entries):
  """Where the kernels have an answer: not for vectors of no length, nor, beyond one entry, for opposite ones."""
  a = np.array([0.7, -1.3, 2.1], np.float32)[:entries]
  others = {"other": np.float32([0.9, 0.4, 1.0])[:entries], "equal": a, "parallel": np.float32(0.7) * a}
  others |= {"opposite": np.float32(-0.7) * a} if entries == 1 else {}
  cases = [("slerp", {}, {"t": 0.3}, 1), ("nuslerp", {"weight": [1.0, 2.0]}, {}, 2), ("karcher", {}, {}, 2),
           ("multislerp", {"weight": [1.0, 0.4]}, {}, 2), ("model_stock", {}, {}, 2)]
  for name, per_model, parameters, count in cases:
    method = METHODS[name]
    for kind, b in others.items():
      base = None if method.base == "ignored" or name == "multislerp" else a if name == "slerp" else np.zeros_like(a)
      models = [b] if count == 1 else [a, b]
      ours = merge_leaf(method.leafwise, models, base, method.settings(per_model, parameters))
      tensors = [torch.tensor(x, dtype=torch.float64) for x in ([] if base is None else [base]) + models]
      given = {k: dict(enumerate(v, 1)) if k in method.per_model else v for k, v in {**per_model, **parameters}.items()}
      theirs = api.merge_tensors(tensors, name, parameters=given, ids=range(base is None, count + 1),
                             base_index=None if base is None else 0)
      np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6, err_msg=f"{name}, {kind}")


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_equal_magnitudes_are_told_apart_as_by_a_stable_sort(name, monkeypatch):
  # Which of them mergekit keeps is up to torch: its sorts are not stable unless asked to be.
  for sort in ("sort", "argsort"):
    stable = functools.partial(getattr(torch, sort), stable=True)
    monkeypatch.setattr(sparsify.torch, sort, stable)
  ours, theirs = both(name, TRIMMED, {}, monkeypatch, quantized=True)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_same_methods_parameters_and_defaults():
  theirs = {m.spec.name: m.spec for m in registry.registered_methods()}
  assert sorted(theirs) == sorted(METHODS)
  for name, spec in theirs.items():
    method = METHODS[name]
    ours = {**method.per_model, **method.parameters}
    assert {p.name: p.default for p in spec.parameters if not p.required} == {
        k: v for k, v in ours.items() if v is not REQUIRED}, name
    assert {p.name for p in spec.parameters if p.required} == {k for k, v in ours.items() if v is REQUIRED}, name
    assert {p.name for p in spec.input_parameters} == set(method.per_model), name
    assert spec.contract.base.value == method.base, name


def test_probabilities_of_ranks_are_mergekits():
  n, density, epsilon = 80, 0.4, 0.15
  want = (density - epsilon) + 2 * epsilon * np.arange(n) / (n - 1)
  np.testing.assert_allclose(keep_probabilities(n, density=density, epsilon=epsilon) / 2.0**24, want, atol=2.0**-16)
  assert probability(0.4) == round(0.4 * 2**24)
