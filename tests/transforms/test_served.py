"""Many sub-matrix deltas of one base in one batch: the leaf, the decoder, generation; exact fusing and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import generate, stepwise_decoder
from jaxft.leaves import RowDelta, dot, lookup, materialize
from jaxft.leaves.products import dot_transposed
from jaxft.merging.compression.delta_files import load_delta, save_delta
from jaxft.merging.compression.sparse_deltas import apply_delta, fuse, sparse_difference, switch, unfuse
from jaxft.models import decoder
from jaxft.transforms import lora, serve, submatrix, submatrix_delta
from jaxft.transforms.entries.served import ServedDeltas
from jaxft.transforms.quantize import quantize_array
from jaxft.tree import cut_layers, unstack_layers

KEY = jax.random.key(0)
CONFIG = decoder.DecoderConfig(
    vocab_size=32, dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)
M, N = 12, 10
UP, DOWN, OUT, TABLE = "**/mlp/up/kernel", "**/mlp/down/kernel", "**/attention/out/kernel", "embed/tokens/*"
LAYOUTS = {"stacked": lambda p: p, "unrolled": unstack_layers, "cut": lambda p: cut_layers(p, [1])}
# Each trains other matrices, other rows or columns, and other numbers of them; the last trains the columns of a matrix
# of which the first trains rows.
METHODS = (
    submatrix(indices={DOWN: np.array([[3, 9, 0], [5, 2, -1], [-1, -1, -1]]), OUT: np.arange(4)}),
    submatrix(indices={DOWN: np.array([7]), UP: np.array([0, 23, 11])}, axis={DOWN: -2, UP: -1}),
    submatrix(indices={DOWN: np.array([1, 2]), TABLE: np.array([3, 8, 30])}, axis={DOWN: -1, TABLE: -2}),
)


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def moved(transform, params, scale=0.5, seed=0):
  """Both sides of a transform after a move of what trains."""
  frozen, trainable = transform.split(KEY, params)
  return frozen, jax.tree.map(lambda d: d + scale * draw(seed + d.size, *d.shape).astype(d.dtype), trainable)


def bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("quantized", [False, True])
def test_every_product_is_that_of_the_examples_own_matrix(axis, quantized):
  size = M if axis == -2 else N
  w = quantize_array(draw(0, M, N), block=4) if quantized else draw(0, M, N)
  chosen = [np.array([7, 0, 3]), np.array([1]), np.array([4, size])]
  shape = lambda k: (k, N) if axis == -2 else (M, k)
  deltas = [{"w": RowDelta(jnp.array(i), draw(j, *shape(len(i))), axis)} for j, i in enumerate(chosen)]
  adapter = jnp.array([2, 0, -1, 1, 0])
  served = serve({"w": w}, deltas, adapter)["w"]
  whole = materialize({"w": w})
  own = jnp.stack([whole["w"] if i < 0 else apply_delta(whole, deltas[i])["w"] for i in adapter])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for shape in ((5,), (5, 3), (5, 2, 3)):
    x, y = draw(8, *shape, M), draw(9, *shape, N)
    close(jax.jit(dot)(x, served), jax.vmap(jnp.matmul)(x, own))
    close(jax.jit(dot_transposed)(y, served), jax.vmap(lambda y, w: y @ w.T)(y, own))
  ids = jax.random.randint(KEY, (5, 3), 0, M)
  close(jax.jit(lookup)(served, ids), jax.vmap(lambda w, i: w[i])(own, ids))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_served_batch_is_each_example_with_its_own_merged_params(layout):
  params = layout(decoder.init(KEY, CONFIG, stddev=0.3))
  deltas = [submatrix_delta(*moved(transform, params)) for transform in METHODS]
  merged = [*(apply_delta(params, delta) for delta in deltas), params]  # -1 is the last
  adapter, ids = np.array([2, 0, -1, 1, 0]), jax.random.randint(KEY, (5, 6), 0, 32)
  mask = jnp.arange(6) >= jnp.array([0, 2, 1, 0, 3])[:, None]

  @jax.jit
  def run(params, ids, mask):
    hidden = decoder.hidden_states(params, CONFIG, ids, mask=mask).hidden
    return decoder.logits(params, CONFIG, hidden), decoder.token_nll(params, CONFIG, ids, mask=mask, chunk=2)[0]

  @jax.jit
  def run_served(params, deltas, adapter):
    return run(serve(params, deltas, adapter), ids, mask)

  got = run_served(params, deltas, adapter)
  alone = [run(merged[i], ids[b : b + 1], mask[b : b + 1]) for b, i in enumerate(adapter)]
  want = jax.tree.map(lambda *x: jnp.concatenate(x), *alone)
  where = mask[..., None]
  np.testing.assert_allclose(got[0] * where, want[0] * where, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-3, atol=1e-3)
  base = run(params, ids, mask)
  changed = np.abs(np.asarray((got[0] - base[0]) * where)).max((1, 2)) > 0.1
  np.testing.assert_array_equal(changed, adapter >= 0)


@pytest.mark.parametrize("layout", [LAYOUTS["stacked"], unstack_layers], ids=["stacked", "unrolled"])
def test_generation_serves_many_deltas_in_one_batch(layout):
  params = layout(decoder.init(KEY, CONFIG, stddev=0.3))
  deltas = [submatrix_delta(*moved(transform, params)) for transform in METHODS]
  adapter, prompt = np.array([1, -1, 2, 0]), jax.random.randint(KEY, (1, 4), 0, 32)
  write = lambda params, prompt: generate(
      stepwise_decoder(params, CONFIG), prompt, KEY, max_new_tokens=6, temperature=0.0)
  got = write(serve(params, deltas, adapter), jnp.tile(prompt, (4, 1)))
  for b, i in enumerate(adapter):
    want = write(params if i < 0 else apply_delta(params, deltas[i]), prompt)
    np.testing.assert_array_equal(got.tokens[b], want.tokens[0])
    np.testing.assert_allclose(got.log_probs[b], want.log_probs[0], rtol=1e-3, atol=1e-3)
  assert len({tuple(row) for row in np.asarray(got.tokens)}) > 1, "the deltas must matter for this to be a test"


def test_a_traced_adapter_out_of_range_counts_as_none():
  params = {"w": draw(0, M, N)}
  deltas = [{"w": RowDelta(jnp.array([1, 4]), draw(1, 2, N))}]
  x = draw(2, 4, M)
  got = jax.jit(lambda adapter: dot(x, serve(params, deltas, adapter)["w"]))(jnp.array([0, 1, -1, -5]))
  np.testing.assert_allclose(got[1:], (x @ params["w"])[1:], rtol=1e-5, atol=1e-5)
  assert np.abs(np.asarray(got[0] - x[0] @ params["w"])).max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("layout", [LAYOUTS["stacked"], unstack_layers], ids=["stacked", "unrolled"])
def test_fusing_is_exact_however_small_the_moves(dtype, layout, tmp_path):
  params = layout(jax.tree.map(lambda x: (1e-3 * x).astype(dtype), decoder.init(KEY, CONFIG)))
  a, b = (moved(transform, params, scale=1e-9) for transform in METHODS[:2])
  delta, other = submatrix_delta(*a), submatrix_delta(*b)
  fused, old = fuse(params, delta)
  bits(fused, materialize(METHODS[0].join(*a)))
  bits(unfuse(fused, old), params)
  if dtype == jnp.float32:
    differs = jax.tree.map(lambda x, y: bool((x != y).any()), fused, params)
    assert any(jax.tree.leaves(differs)), "1e-9 must count"
    assert not sparse_difference(params, fused), "which the differences of whole models drop"
  again, older = switch(fused, old, other)
  bits(again, fuse(params, other)[0])
  bits(unfuse(again, older), params)

  for name, kept in (("delta", delta), ("old", old)):
    size = save_delta(tmp_path / name, kept)
    loaded = load_delta(tmp_path / name)
    assert loaded.keys() == kept.keys()
    for path, strips in kept.items():
      bits(loaded[path], strips)
      assert loaded[path].axis == strips.axis
    assert size < sum(x.nbytes for x in jax.tree.leaves(kept)) + 300 * len(kept)
  bits(fuse(params, load_delta(tmp_path / "delta"))[0], fused)


def test_a_delta_of_a_whole_square_matrix_knows_its_axis():
  """As many rows as columns, all of them: only the note of the transform can tell which."""
  params = {"w": draw(0, 6, 6)}
  order = np.array([3, 1, 5, 0, 2, 4])
  for axis in (-2, -1):
    transform = submatrix(indices={"w": order}, axis=axis)
    sides = moved(transform, params)
    delta = submatrix_delta(*sides)
    assert delta["w"].axis == axis
    bits(apply_delta(params, delta), materialize(transform.join(*sides)))
    bits(jax.jit(apply_delta)(params, delta), apply_delta(params, delta))


def test_flat_entries_go_through_files_too(tmp_path):
  params = {"w": draw(0, M, N).astype(jnp.bfloat16)}
  delta = sparse_difference(params, {"w": params["w"].at[2, 3].add(1).at[5].add(2)})
  save_delta(tmp_path / "delta", delta)
  bits(load_delta(tmp_path / "delta"), delta)


W = {"layers": {"w": jnp.ones((3, M, N))}}
at = lambda row: {"layers/w": RowDelta(jnp.full((3, 1), row), jnp.ones((3, 1, N)))}
GOOD = at(0)
ONE = jnp.array([0])


@pytest.mark.parametrize("call, message", [
    (lambda: serve(W, [], ONE), "deltas must have at least one delta"),
    (lambda: serve(W, [GOOD], jnp.array([1])), r"adapter must lie in 0\.\.0, or be -1 for none; got -1\.\.1"),
    (lambda: serve(W, [GOOD], np.array([-2])), r"adapter must lie in 0\.\.0, or be -1 for none; got -2\.\.-1"),
    (lambda: serve(W, [GOOD], jnp.array([0.0])), "adapter must be a vector of integers.*got float32"),
    (lambda: serve(W, [GOOD], jnp.array(0)), r"adapter must be a vector of integers.*of shape \(\)"),
    (lambda: serve(W, [{"layers/v": GOOD["layers/w"]}], ONE), "deltas.0. has a path that the params lack: layers/v"),
    (lambda: serve(W, [{"layers/w": (ONE, ONE)}], ONE),
     "must hold RowDelta, of submatrix_delta; got tuple for layers/w"),
    (lambda: serve(W, [{"layers/w": RowDelta(ONE, jnp.ones((1, N)))}], ONE), r"layers/w has shape \(3, 12, 10\)"),
    (lambda: apply_delta(W, at(-1)), r"layers/w takes indices in 0\.\.11, or 12 for none; got -1\.\.-1"),
    (lambda: serve(W, [at(13)], ONE), r"layers/w takes indices in 0\.\.11, or 12 for none; got 13\.\.13"),
    (lambda: apply_delta({"w": quantize_array(draw(0, 8, 8), block=4)}, {"w": (ONE, ONE)}), "a plain array at w; got"),
    (lambda: RowDelta(ONE, ONE, 0), r"axis must be -2 \(rows\) or -1 \(columns\); got 0"),
    (lambda: ServedDeltas(W, ONE, ONE, ONE, axis=0), r"axis must be -2 \(rows\) or -1 \(columns\); got 0"),
    (lambda: materialize(serve(W, [GOOD], ONE)), "a matrix .3, 12, 10. for each example"),
    (lambda: dot(jnp.ones((3, M)), jax.tree.map(lambda x: x[0], serve(W, [GOOD], ONE))["layers"]["w"]),
     r"for each of 1 examples; got a batch of shape \(3, 12\)"),
    (lambda: submatrix_delta(*lora("w", rank=1).split(KEY, {"w": draw(0, 3, 4)})), "w is of another transform"),
])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_file_errors(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_delta(tmp_path / "none")
  (tmp_path / "text").write_text("hello")
  with pytest.raises(ValueError, match="text"):
    load_delta(tmp_path / "text")
