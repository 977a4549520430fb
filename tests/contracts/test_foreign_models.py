"""Every transform on a linen dict, an `nnx.State` or an Equinox module, through `lazy`, and no leaf is formed."""

import warnings

import jax
import pytest

from jaxft.leaves import MaterializedWarning, lazy, materialize
from tests.contracts.comparison import assert_trees_close
from tests.contracts.foreign_models import FOREIGN
from tests.contracts.transform_cases import BY_NAME, DIM, HIDDEN, KEY, KINDS, WHOLE, X, loss_and_gradients, moved


def trials():
  """LoRA and QLoRA on every kind of model; of the others each on one of them, in turn, as a model costs seconds."""
  for i, case in enumerate(case for case in WHOLE if not case.layout):
    marks = [] if case.name in KINDS.values() else [pytest.mark.exhaustive]
    for model in FOREIGN if case.name in ("lora", "qlora_nf4") else [FOREIGN[i % len(FOREIGN)]]:
      again = [pytest.mark.interpreter] if case.name == "qlora_nf4" else []
      yield pytest.param(case, model, True, id=f"{case.name}-{model.__name__}", marks=marks + again)
  for model in FOREIGN:
    yield pytest.param(BY_NAME["qlora_nf4"], model, False, id=f"qlora_nf4-{model.__name__}-unrolled")


@pytest.mark.parametrize("case,model,scan", list(trials()))
def test_foreign_models(case, model, scan):
  params, apply = model(2, DIM, HIDDEN, scan)
  frozen, trainable = case.transform.split(KEY, params)
  trainable = moved(trainable)

  fast = loss_and_gradients(case, lazy(apply))
  plain = loss_and_gradients(case, lambda params, x: apply(materialize(params), x))
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    got, want = jax.jit(lambda *sides: (fast(*sides), plain(*sides)))(frozen, trainable, X)
  assert_trees_close(got, want)
  formed = jax.eval_shape(lambda: materialize(case.transform.join(frozen, trainable)))
  assert jax.tree.structure(formed) == jax.tree.structure(params)
