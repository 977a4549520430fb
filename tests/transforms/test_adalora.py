"""The budget of AdaLoRA only falls."""

import pytest

from jaxft.transforms import budget


def test_the_budget_falls_from_initial_to_target():
  got = [int(budget(step, initial=12, target=4, warmup=2, final=2, total=10)) for step in range(10)]
  assert got[:3] == [12, 12, 12] and got[-2:] == [4, 4] and got == sorted(got, reverse=True)
  assert int(budget(5, initial=4, target=4, warmup=0, final=0, total=10)) == 4


@pytest.mark.parametrize("target", [13, -1])
def test_a_budget_that_grows_is_refused(target):
  with pytest.raises(ValueError, match=rf"target must lie in 0\.\.initial = 12: .*; got {target}"):
    budget(0, initial=12, target=target, warmup=0, final=0, total=10)
