"""Options of a run that mean nothing, and what its folder holds of what it read, before anything is trained."""

import dataclasses
import json

import pytest

from jaxft.recipes import run_folder
from jaxft.recipes.options import Examples, Finetune, Loss, Optimization
from jaxft.recipes.run import check_loss, check_options

RUN = Finetune(model="m", data="d")


@pytest.mark.parametrize("change, message", [
    ({"optimization": Optimization(steps=3, epochs=2.0)}, "steps and epochs both say how long"),
    ({"examples": Examples(validation="dev", holdout=0.2)}, "holdout is not read where there is a validation split"),
    ({"optimization": Optimization(warmup=1.0)}, r"warmup must be in \[0, 1\)"),
    ({"optimization": Optimization(learning_rate=float("nan"))}, "learning_rate must be finite"),
])
def test_options_that_contradict_each_other_or_mean_nothing(change, message):
  check_options(RUN)
  with pytest.raises(ValueError, match=message):
    check_options(dataclasses.replace(RUN, **change))


@pytest.mark.parametrize("loss, options, message", [
    ("sft", Loss(temperature=7.0, margin=3.0), "loss sft does not read --temperature, --margin; it reads no option"),
    ("mnrl", Loss(margin=0.1), "mnrl does not read --margin; it reads --temperature"),
    ("mnrl", Loss(guide="m"), "mnrl does not read --guide"),
])
def test_an_option_that_the_loss_does_not_read_is_refused(loss, options, message):
  check_loss(Loss(), loss)
  with pytest.raises(ValueError, match=message):
    check_loss(options, loss)


def test_a_run_goes_on_with_what_it_began_with_alone(tmp_path):
  inputs = {"data version": "a", "records": 3, "model's weights": "0f"}
  assert not run_folder.open_run(tmp_path, {"rank": 8}, overwrite=False)
  run_folder.check_inputs(tmp_path, inputs)
  assert run_folder.open_run(tmp_path, {"rank": 8}, overwrite=False)
  run_folder.check_inputs(tmp_path, inputs)
  with pytest.raises(ValueError, match="changed since: data version: 'a' there, 'b' here; records: 3 there, 4 here"):
    run_folder.check_inputs(tmp_path, inputs | {"data version": "b", "records": 4})
  (tmp_path / run_folder.INPUTS).write_text("[1")
  with pytest.raises(ValueError, match="does not say what a run reads"):
    run_folder.check_inputs(tmp_path, inputs)
  assert not run_folder.open_run(tmp_path, {"rank": 8}, overwrite=True)
  run_folder.check_inputs(tmp_path, inputs | {"records": 5})
  assert json.loads((tmp_path / run_folder.INPUTS).read_text())["records"] == 5
