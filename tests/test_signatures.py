"""Errors name the argument, what it takes and what it got, whatever went wrong inside."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Key

from jaxft import losses, merging
from jaxft.analysis import effective_rank
from jaxft.choices import unit_indices
from jaxft.decoding import Stepwise, before_stop, sample
from jaxft.signatures import AnyArray, Tree, check_arrays, explain_errors
from jaxft.transforms import cayley, mica, rank_budget


@check_arrays
def several(
    x: Float[AnyArray, "rows dim"] | None = None, *, count: int = 1, rate: float = 0.5, flag: bool = True,
    kind: Literal["sum", "mean"] | None = None, key: Key[Array, ""] | None = None, dims: Sequence[int] = (),
    texts: Sequence[str] = (), apply: Callable[[Any], Any] | None = None, table: Mapping[str, int] | None = None,
    model: Stepwise | None = None, anything: Any = None,
) -> tuple:
  """A function with a parameter of every kind."""
  return x, count, rate, flag, kind, key, dims, texts, apply, table, model, anything


@pytest.mark.parametrize("arguments, error, message", [
    ({"count": 1.5}, TypeError, "count must be an integer; got 1.5"),
    ({"count": np.ones(2, int)}, TypeError, r"count must be an integer; got int64 \[2\]"),
    ({"rate": [1]}, TypeError, "rate must be a number; got list"),
    ({"rate": "a"}, TypeError, "rate must be a number; got the str 'a'"),
    ({"flag": "no"}, TypeError, "flag must be True or False; got the str 'no'"),
    ({"kind": "all"}, ValueError, "kind must be one of sum, mean or None; got 'all'"),
    ({"kind": 3}, TypeError, "kind must be one of sum, mean or None; got 3"),
    ({"key": 0}, TypeError, "key must be a key of jax.random.key or None; got 0"),
    ({"dims": 3}, TypeError, "dims must be a sequence; got 3"),
    ({"dims": "12"}, TypeError, "dims must be a sequence; got the str '12'"),
    ({"apply": "f"}, TypeError, "apply must be a function or None; got the str 'f'"),
    ({"table": [1]}, TypeError, "table must be a mapping or None; got list"),
    ({"model": {}}, TypeError, "model must be a Stepwise or None; got dict"),
    ({"x": np.ones(3)}, ValueError, r"x must be an array \[rows, dim\] of floating-point numbers; got float64 \[3\]"),
])
def test_each_kind_of_argument_is_named(arguments, error, message):
  with pytest.raises(error, match=f"^{message}$"):
    several(**arguments)


def test_what_is_of_the_kind_passes():
  old, new = jax.random.PRNGKey(0), jax.random.key(0)
  several(np.ones((2, 3)), count=np.int32(2), rate=np.float32(0.5), flag=np.bool_(True), kind="sum", key=old)
  several(count=jnp.array(2), rate=jnp.array(0.5), key=new, dims=np.arange(3), texts="ab", apply=len, table={"a": 1})
  assert jax.jit(lambda rate, key: several(rate=rate, key=key)[2])(0.25, new) == 0.25
  assert several(anything="x")[-1] == "x"


def test_errors_from_inside_are_explained_and_others_stay():
  @explain_errors
  def product(a: Float[AnyArray, "rows inner"], b: Float[AnyArray, "inner columns"], times: int = 1):
    if times < 1:
      raise ValueError(f"times must be at least 1; got {times}")
    return np.asarray(a) @ np.asarray(b) * times

  assert product([[1.0, 2.0]], [[3.0], [4.0]]) == 11.0, "what works is not looked at"
  assert product(np.ones((0, 2)), np.ones((2, 1))).shape == (0, 1)
  with pytest.raises(ValueError, match="b must be an array .* with inner = 2 as in a; got float64") as caught:
    product(np.ones((1, 2)), np.ones((3, 1)))
  assert "matmul" in str(caught.value.__cause__)
  with pytest.raises(TypeError, match="a must be an array .*; got str"):
    product("x", np.ones((3, 1)))
  with pytest.raises(ValueError, match="times must be at least 1; got 0"):
    product(np.ones((1, 2)), np.ones((3, 1)), times=0)
  with pytest.raises(ZeroDivisionError):  # no argument is to blame
    explain_errors(lambda: 1 // 0)()


def test_where_every_argument_fits_the_error_says_what_they_were():
  @explain_errors
  def entry(table: Mapping[str, int], name: str, *, apply: Callable[[Any], Any] | None = None):
    return math.sqrt(table[name]) if apply is None else apply(table[name])

  assert entry({"a": 4}, "a") == 2.0
  with pytest.raises(ValueError, match=r"^entry cannot use table = dict, name = the str 'b'; inside, KeyError: 'b'$"):
    entry({"a": 1}, "b")
  with pytest.raises(ValueError, match="^entry cannot use .*; inside, ValueError: math domain error"):
    entry({"a": -1}, "a")
  theirs = eval("lambda x: x // 0", {"__name__": "theirs"})
  with pytest.raises(ZeroDivisionError):  # a function of the caller's raises what it likes
    entry({"a": 1}, "a", apply=theirs)


def test_a_str_and_none_are_refused_where_the_signature_has_neither():
  @explain_errors
  def later(rate: float, dims: Sequence[int], tree: Tree, name: str | None = None):
    return lambda: (rate, dims, tree, name)

  assert later(0.5, [1], {"w": HIDDEN})()[3] is None and later(0.5, [1], None, "a")()[3] == "a"
  for arguments, message in (
      (("a", [1], {}), "rate must be a number; got the str 'a'"),
      ((None, [1], {}), "rate must be a number; got None"),
      ((0.5, "12", {}), "dims must be a sequence; got the str '12'"),
      ((0.5, [1], "w"), "tree must be a tree of arrays; got the str 'w'")):
    with pytest.raises(TypeError, match=f"^{message}"):
      later(*arguments)


HIDDEN, TOKENS, HEAD = np.ones((1, 2, 3), np.float32), np.ones((1, 2), np.int32), np.ones((3, 4), np.float32)


@pytest.mark.parametrize("call, message", [
    (lambda: losses.token_statistics(HIDDEN, HEAD.T, TOKENS), r"head of shape \[4, 3\] .* does not contract"),
    (lambda: losses.token_statistics(HIDDEN, None, TOKENS), "head must be a matrix, .*; got NoneType"),
    (lambda: losses.linear_generalized_jsd(HIDDEN, HEAD, HIDDEN, HEAD.T), r"teacher_head of shape \[4, 3\]"),
    (lambda: losses.l1_to_reference("x", "y"), "params must be a tree of arrays; got the str 'x'"),
    (lambda: losses.matryoshka("info_nce", dims=[2]), "loss must be a function; got the str 'info_nce'"),
    (lambda: losses.overlong_penalty(TOKENS[0], max_length="8", buffer=2), "max_length must be an integer"),
    (lambda: merging.karcher_mean("x"), "models must be a sequence of checkpoints; got 'x'"),
    (lambda: merging.ties({"w": HEAD}, {"w": HEAD}, density=0.5), "models must be a sequence; got dict"),
    (lambda: merging.average({"w": HEAD}), "models must be a sequence of checkpoints; got dict"),
    (lambda: merging.dare(None, {}, density=0.5, key=0), "models must be a sequence.*; got None"),
    (lambda: merging.golomb_encode("x"), "signs must be"),
    (lambda: effective_rank("w"), "w must be an array"),
    (lambda: cayley(None), "skew must be an array .*; got NoneType"),
    (lambda: mica(jax.random.key(0), np.eye(3, dtype=np.float32), 1.5, 1.0, None), "rank must be an integer; got 1.5"),
    (lambda: rank_budget("x", initial=4, target=2, warmup=1, final=1, total=10), "step must be .*; got str"),
    (lambda: before_stop("a text", "stop"), "strings must be a sequence of str, .*; got the str 'stop'"),
    (lambda: sample(jax.random.key(0), "x"), "logits must be an array"),
    (lambda: unit_indices(None, unit=2), "must be|chosen"),
])
def test_functions_name_the_argument(call, message):
  with pytest.raises((TypeError, ValueError), match=message):
    call()
