"""Against peft: inits that look at data, their learning rates and quantized bases, and all as adapter files."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.formats import load_peft, save_peft
from jaxft.leaves import materialize
from jaxft.optimizers import lora_plus, scale_updates
from jaxft.transforms import chain, lora, quantize
from jaxft.transforms.low_rank.corda import corda
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.low_rank.eva import eva_directions, from_directions
from jaxft.transforms.low_rank.loftq import loftq
from jaxft.transforms.low_rank.lora_ga import lora_ga
from jaxft.transforms.low_rank.olora import olora
from jaxft.transforms.low_rank.pissa import pissa
from tests.parity.libraries import library
from tests.parity.test_peft_low_rank import IDS, LAYERS, load, our_logits, relative_error, small_llama

torch = library("torch")
transformers = library("transformers")
peft = library("peft")
incremental_pca, optimizers = map(library, ("peft.utils.incremental_pca", "peft.optimizers"))

pytestmark = pytest.mark.filterwarnings("ignore")
# Modules of unlike inputs, so that no two of them tie: [32, 32], [32, 32] and [48, 32].
NAMES = {"query": "self_attn.q_proj", "out": "self_attn.o_proj", "down": "mlp.down_proj"}
PATHS = {"query": "layers/attention/query/kernel", "out": "layers/attention/out/kernel",
         "down": "layers/mlp/down/kernel"}
SELECT = "**/{query,out,down}/kernel"
TARGETS = {"target_modules": ["q_proj", "o_proj", "down_proj"]}
LORA = {"r": 4, "lora_alpha": 6, **TARGETS}
SCALE = 1.5
SEQUENCES = np.random.default_rng(1).integers(0, 61, (16, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """The params and the config of the small Llama."""
  return load(small_llama(), tmp_path_factory.mktemp("base"))


def modules(model, name, prefix="base_model.model."):
  return [model.get_submodule(f"{prefix}model.layers.{i}.{NAMES[name]}") for i in range(LAYERS)]


def factors(module):
  """A and B of peft in our layout."""
  return [getattr(module, name)["default"].weight.detach().numpy().T for name in ("lora_A", "lora_B")]


def their_logits(model):
  with torch.no_grad():
    return model(torch.tensor(IDS)).logits.numpy()


def leaf_at(tree, path):
  for part in path.split("/"):
    tree = tree[part]
  return tree


def moved(tree):
  """Numbers as after training: off their start, and no two alike."""
  noise = lambda keys, x: 0.1 * jax.random.normal(jax.random.key(len(str(keys))), x.shape, x.dtype)
  return jax.tree_util.tree_map_with_path(lambda keys, x: x + noise(keys, x), tree)


def inputs_of(model):
  """The inputs of each adapted module over all sequences: `{name: [layer, position, in]}`."""
  seen = {}
  hooks = [module.register_forward_pre_hook(lambda _, args, at=(name, i): seen.__setitem__(at, args[0].numpy()))
           for name in NAMES for i, module in enumerate(modules(model, name, ""))]
  with torch.no_grad():
    model(torch.tensor(SEQUENCES))
  for hook in hooks:
    hook.remove()
  return {name: np.stack([seen[name, i].reshape(-1, seen[name, i].shape[-1]) for i in range(LAYERS)]) for name in NAMES}


def centered_covariances(model):
  center = lambda x: x - x.mean(1, keepdims=True)
  return {PATHS[name]: jnp.asarray(np.einsum("lpi,lpj->lij", center(x), center(x)))
          for name, x in inputs_of(model).items()}


def gradient_step(model):
  loss = model(torch.tensor(SEQUENCES), labels=torch.tensor(SEQUENCES)).loss
  loss.backward()


def gradients(model):
  """The gradients of the adapted weights, in our layout."""
  model.zero_grad()
  gradient_step(model)
  return {PATHS[name]: jnp.asarray(np.stack([m.weight.grad.numpy().T for m in modules(model, name, "")]))
          for name in NAMES}


def aligned(ours, theirs, axis):
  """Our singular vectors with the signs of theirs: a decomposition leaves them open."""
  return ours * np.sign(np.sum(ours * theirs, axis=axis, keepdims=True))


def tiers(cases, quick):
  """The quick cases, and the others in the exhaustive tier."""
  values = lambda case: case if isinstance(case, tuple) else (case,)
  return [case if case in quick else pytest.param(*values(case), marks=pytest.mark.exhaustive) for case in cases]


GA_CASES = [(d, s) for d in ("ArB2r", "A2rBr", "ArBr") for s in ("stable", "gd_scale")] + [
    ("ArB2r", "weight_svd"), ("ArB2r", "unit")]


def exact_svd(matrix, q, niter):
  """In place of peft's randomized decomposition, whose error hangs on how close singular values lie."""
  u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
  return u[:, :q], s[:q], vh[:q].T


@pytest.mark.parametrize("direction, scale", tiers(GA_CASES, [("ArB2r", "stable")]))
def test_lora_ga_is_pefts(direction, scale, base, monkeypatch):
  monkeypatch.setattr("torch.svd_lowrank", exact_svd)
  params, config = base
  grads = gradients(small_llama())
  transform = lora(SELECT, rank=4, alpha=4 * SCALE, statistics=grads, init=lora_ga(
      direction=direction, scale=scale, gamma=9.0, form="peft"))
  frozen, trainable = transform.split(jax.random.key(0), params)

  model = small_llama()
  settings = peft.LoraConfig(**LORA, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig(
      direction=direction, scale=scale, stable_gamma=9))
  peft.preprocess_loraga(model, settings, lambda: gradient_step(model))
  adapted = peft.get_peft_model(model, settings).eval()
  assert relative_error(our_logits(transform.join(frozen, trainable), config), our_logits(params, config)) < 1e-4
  assert relative_error(their_logits(adapted), our_logits(params, config)) < 1e-4

  for name, path in PATHS.items():
    for i, module in enumerate(modules(adapted, name)):
      w, left = np.asarray(leaf_at(params, path)[i]), np.asarray(leaf_at(frozen, path)[i])
      ours = jax.tree.map(lambda x: np.asarray(x[i]), leaf_at(trainable, path))
      want_a, want_b = factors(module)
      a, b = aligned(ours["a"], want_a, 0), aligned(ours["b"], want_b, 1)
      assert relative_error(a, want_a) < 2e-4 and relative_error(b, want_b) < 2e-4
      np.testing.assert_allclose(left, w - SCALE * ours["a"] @ ours["b"], atol=1e-5 * np.abs(left).max())
      rest = module.get_base_layer().weight.detach().numpy().T
      assert relative_error(rest - w, -SCALE * want_a @ want_b) < 1e-5
      assert relative_error(rest - w, -SCALE * a @ b) < 2e-4
      assert relative_error(rest, w) > 1e-3


def test_lora_ga_with_random_directions_is_pefts(monkeypatch):
  key, rank = jax.random.key(3), 4
  grad = np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)
  w = np.random.default_rng(1).normal(size=(12, 10)).astype(np.float32)
  linear = torch.nn.Linear(12, 10, bias=False)
  linear.weight.data = torch.tensor(w.T.copy())
  model = torch.nn.Sequential(linear)
  linear._peft_loraga_grad = torch.tensor(grad.T.copy())
  order = np.asarray(jax.random.permutation(key, 2 * rank))
  monkeypatch.setattr("torch.randperm", lambda n: torch.tensor(order[:n].astype(np.int64)))
  adapted = peft.get_peft_model(model, peft.LoraConfig(
      r=rank, lora_alpha=6, target_modules=["0"], init_lora_weights="lora_ga",
      lora_ga_config=peft.LoraGAConfig(direction="random", scale="unit")))
  init = lora_ga(direction="random", scale="unit", form="peft")
  left, a, b = init(key, jnp.asarray(w), rank, SCALE, jnp.asarray(grad))
  module = adapted.base_model.model[0]
  want_a, want_b = factors(module)
  # One vector of a and one of b are of one triplet, whose two signs go together: the products are the same.
  assert relative_error(aligned(np.asarray(a), want_a, 0), want_a) < 2e-3
  assert relative_error(aligned(np.asarray(b), want_b, 1), want_b) < 2e-3
  assert relative_error(left, module.get_base_layer().weight.detach().numpy().T) < 2e-3
  assert relative_error(left, w) > 0.1


DIRECTIONS, SCALES = ("ArB2r", "A2rBr", "ArBr", "random"), ("stable", "weight_svd", "gd_scale", "unit")


@pytest.mark.parametrize("direction, scale", tiers(
    itertools.product(DIRECTIONS, SCALES), list(zip(DIRECTIONS, SCALES, strict=True))))
def test_lora_ga_in_the_form_of_the_papers_code(direction, scale):
  rng, key, r = np.random.default_rng(0), jax.random.key(3), 3
  grad, w = (rng.normal(size=(12, 10)).astype(np.float32) for _ in range(2))
  left, a, b = lora_ga(direction=direction, scale=scale, gamma=9.0)(key, jnp.asarray(w), r, SCALE, jnp.asarray(grad))
  order = np.asarray(jax.random.permutation(key, 2 * r))
  at_a, at_b = {"ArB2r": ([0, 1, 2], [3, 4, 5]), "A2rBr": ([3, 4, 5], [0, 1, 2]), "ArBr": ([1, 3, 5], [0, 2, 4]),
                "random": (order[:r], order[r:])}[direction]
  factor = {"stable": 10**0.25 / 3, "gd_scale": 1 / SCALE, "unit": 1.0,
            "weight_svd": np.sqrt(np.linalg.svd(w, compute_uv=False)[:r] / SCALE).mean()}[scale]
  u, _, v = np.linalg.svd(grad, full_matrices=False)
  a, b = np.asarray(a), np.asarray(b)
  assert relative_error(aligned(a, u[:, at_a], 0), factor * u[:, at_a]) < 1e-4
  assert relative_error(aligned(b, v[at_b], 1), factor * v[at_b]) < 1e-4
  np.testing.assert_allclose(left, w - SCALE * a @ b, atol=1e-5)


@pytest.mark.parametrize("options, message", [
    ({"direction": "ArB"}, "direction must be one of ArBr, A2rBr, ArB2r, random; got 'ArB'; nearest: ArBr"),
    ({"scale": "weights"}, "scale must be one of .*got 'weights'; nearest: weight_svd"),
    ({"form": "huggingface"}, "form must be one of paper, peft; got 'huggingface'"),
    ({"gamma": 0.0}, "gamma must be positive"),
])
def test_what_lora_ga_does_not_take(options, message):
  with pytest.raises(ValueError, match=message):
    lora_ga(**options)


def eva_in_peft(rank, rho):
  batches = [{"input_ids": torch.tensor(SEQUENCES), "attention_mask": torch.ones(SEQUENCES.shape, dtype=torch.long)}]
  model = peft.get_peft_model(small_llama(), peft.LoraConfig(
      **{**LORA, "r": rank}, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho, tau=0.9999)))
  peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)
  return model.eval()


@pytest.mark.parametrize("exact", tiers([False, True], [True]), ids=["sketched", "exact"])
def test_eva_has_pefts_ranks_and_directions(exact, base, monkeypatch):
  if exact:  # peft decomposes sketches of the inputs, which shows in the last directions; here the inputs themselves
    theirs = incremental_pca.IncrementalPCA
    monkeypatch.setattr(theirs, "_svd_fn_lowrank", theirs._svd_fn_full)
  rank, rho = 2, 2.0
  params, config = base
  directions = eva_directions(centered_covariances(small_llama()), rank=rank, rho=rho)
  transform = lora(SELECT, rank=round(rho * rank), alpha=6 * rho, init=from_directions, statistics=directions)
  frozen, trainable = transform.split(jax.random.key(0), params)
  model = eva_in_peft(rank, rho)
  ranks = []
  for name, path in PATHS.items():
    for i, module in enumerate(modules(model, name)):
      a = np.asarray(leaf_at(trainable, path)["a"][i])
      kept = a[:, np.any(a != 0, axis=0)]
      ranks.append(kept.shape[1])
      if not isinstance(module, peft.tuners.lora.LoraLayer):  # peft takes layers of rank 0 out
        assert ranks[-1] == 0
        continue
      want, b = factors(module)
      assert want.shape == kept.shape and not b.any()
      assert module.scaling["default"] == pytest.approx(6 / rank)
      assert relative_error(aligned(kept, want, 0), want) < (1e-3 if exact else 0.1)
  assert sum(ranks) == rank * 3 * LAYERS and len(set(ranks)) > 1
  assert relative_error(our_logits(transform.join(frozen, trainable), config), our_logits(params, config)) < 1e-6


def inits(model):
  """name: `() -> (the init, its statistics)`; all that change the weights, and EVA, which does not."""
  return {
      "pissa": lambda: (pissa, None), "olora": lambda: (olora, None),
      "corda_preview": lambda: (corda("preview"), centered_covariances(model)),
      "corda_preserve": lambda: (corda("preserve"), centered_covariances(model)),
      "lora_ga": lambda: (lora_ga(), gradients(model)),
      "lora_ga_peft": lambda: (lora_ga(form="peft"), gradients(model)),
      "eva": lambda: (from_directions, eva_directions(centered_covariances(model), rank=2, rho=2.0)),
  }


INITS = ("pissa", "olora", "corda_preview", "corda_preserve", "lora_ga", "lora_ga_peft", "eva")


def in_peft(model, folder):
  return peft.PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize("name", tiers(INITS, ("pissa", "lora_ga", "eva")))
def test_an_adapter_for_the_original_weights(name, base, tmp_path):
  params, config = base
  init, statistics = inits(small_llama())[name]()
  transform = lora(SELECT, rank=4, alpha=4 * SCALE, init=init, statistics=statistics)
  frozen, start = transform.split(jax.random.key(0), params)
  trainable = moved(start)
  save_peft(tmp_path / "ours", transform, frozen, trainable, params, config)
  settings = json.loads((tmp_path / "ours/adapter_config.json").read_text())
  assert (settings["r"], settings["lora_alpha"]) == ((4, 6) if name == "eva" else (8, 12))
  got = our_logits(transform.join(frozen, trainable), config)
  assert relative_error(our_logits(params, config), got) > 1e-2
  assert relative_error(their_logits(in_peft(small_llama(), tmp_path / "ours")), got) < 2e-5
  back = load_peft(tmp_path / "ours", params, config)
  assert relative_error(our_logits(back.transform.join(back.frozen, back.trainable), config), got) < 2e-5


def test_an_adapter_for_the_frozen_weights(base, tmp_path):
  params, config = base
  transform = lora(SELECT, rank=4, alpha=4 * SCALE, init=pissa)
  frozen, start = transform.split(jax.random.key(0), params)
  trainable = moved(start)
  save_peft(tmp_path / "ours", transform, frozen, trainable, frozen, config)
  assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["r"] == 4
  got = our_logits(transform.join(frozen, trainable), config)
  assert relative_error(their_logits(in_peft(write_weights(small_llama(), frozen), tmp_path / "ours")), got) < 1e-5
  assert relative_error(their_logits(in_peft(small_llama(), tmp_path / "ours")), got) > 0.1


def test_a_dora_on_changed_weights(base, tmp_path):
  params, config = base
  rest, start = lora(SELECT, rank=4, alpha=4 * SCALE, init=pissa).split(jax.random.key(0), params)
  transform = dora(SELECT, rank=4, alpha=6)
  frozen, trainable = transform.split(jax.random.key(0), rest)
  with_start = lambda t, s: None if t is None else {**t, **s}
  trainable = moved(jax.tree.map(with_start, trainable, start, is_leaf=lambda x: x is None or "magnitude" in x))
  save_peft(tmp_path / "ours", transform, frozen, trainable, params, config)
  got = our_logits(transform.join(frozen, trainable), config)
  assert relative_error(their_logits(in_peft(small_llama(), tmp_path / "ours")), got) < 2e-5


def write_weights(model, params):
  """The model with the adapted weights of a params tree."""
  with torch.no_grad():
    for name, path in PATHS.items():
      w = np.asarray(materialize(leaf_at(params, path)))
      for i, module in enumerate(modules(model, name, "")):
        module.weight.copy_(torch.tensor(w[i].T.copy()))
  return model


QUANTIZED = {
    "qlora": lambda: chain(lora(SELECT, rank=4, alpha=6), quantize(SELECT, format="nf4", block=16, double=True)),
    "qlora_int8": lambda: chain(lora(SELECT, rank=4, alpha=6), quantize(SELECT, format="int8", block=16)),
    "loftq": lambda: lora(SELECT, rank=4, alpha=4 * SCALE, init=loftq(block=16, rounds=2)),
    "qpissa": lambda: chain(lora(SELECT, rank=4, alpha=4 * SCALE, init=pissa), quantize(SELECT, block=16)),
}


@pytest.mark.parametrize("name", tiers(QUANTIZED, ("qlora", "loftq")))
def test_a_quantized_base_is_pefts_with_those_weights(name, base, tmp_path):
  params, config = base
  transform = QUANTIZED[name]()
  frozen, trainable = transform.split(jax.random.key(0), params)
  trainable = moved(trainable)
  joined = transform.join(frozen, trainable)
  model = peft.get_peft_model(write_weights(small_llama(), frozen), peft.LoraConfig(**LORA)).eval()
  with torch.no_grad():
    for short, path in PATHS.items():
      for i, module in enumerate(modules(model, short)):
        leaf = leaf_at(joined, path)
        module.lora_A["default"].weight.copy_(torch.tensor(np.asarray(leaf.a[i]).T.copy()))
        module.lora_B["default"].weight.copy_(torch.tensor(np.asarray(leaf.b[i]).T.copy()))
  got, want = our_logits(joined, config), their_logits(model)
  assert relative_error(got, want) < 1e-5 and relative_error(our_logits(params, config), want) > 1e-2

  with pytest.raises(ValueError, match="layers/.*Quantized.*pass frozen as params"):
    save_peft(tmp_path / "ours", transform, frozen, trainable, params, config)
  assert not (tmp_path / "ours").exists()
  save_peft(tmp_path / "ours", transform, frozen, trainable, frozen, config)
  assert relative_error(their_logits(in_peft(write_weights(small_llama(), frozen), tmp_path / "ours")), got) < 1e-5

  for short, path in PATHS.items():
    merged = materialize(leaf_at(joined, path))
    for i, module in enumerate(modules(model, short)):
      module.merge()
      assert relative_error(merged[i], module.get_base_layer().weight.detach().numpy().T) < 1e-6


@pytest.mark.parametrize("decay", tiers([0.0, 0.1], [0.1]))
def test_lora_plus_learns_as_pefts_optimizer(decay, base):
  params, _ = base
  torch.manual_seed(0)
  model = peft.get_peft_model(small_llama(), peft.LoraConfig(**LORA))
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn_like(p))
  _, trainable = lora(SELECT, rank=4, alpha=6).split(jax.random.key(0), params)

  def read(change):
    both = lambda m: [change(getattr(m, name)["default"].weight).detach().numpy().T for name in ("lora_A", "lora_B")]
    out = {}
    for name, path in PATHS.items():
      a, b = (np.stack(x) for x in zip(*map(both, modules(model, name)), strict=True))
      out[path] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    return out

  ours = read(lambda p: p)
  assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, {p: leaf_at(trainable, p) for p in PATHS.values()})
  optimizer = optimizers.create_loraplus_optimizer(
      model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=decay)
  steps = optax.chain(optax.adamw(1e-2, weight_decay=decay), scale_updates(lora_plus(ours, ratio=16.0)))
  state, first = steps.init(ours), ours
  for _ in range(3):
    optimizer.zero_grad()
    gradient_step(model)
    updates, state = steps.update(read(lambda p: p.grad), state, ours)
    ours = optax.apply_updates(ours, updates)
    optimizer.step()
  want = read(lambda p: p)
  change = lambda new: jax.tree.map(lambda x, y: x - y, new, first)
  for got, theirs in zip(jax.tree.leaves(change(ours)), jax.tree.leaves(change(want)), strict=True):
    assert relative_error(got, theirs) < 1e-4
  sizes = change(want)[PATHS["query"]]
  assert 8 < float(jnp.mean(jnp.abs(sizes["b"])) / jnp.mean(jnp.abs(sizes["a"]))) < 32
