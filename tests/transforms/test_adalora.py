"""The budget of AdaLoRA only falls."""

import pytest

from jaxft.transforms import rank_budget


def test_the_budget_falls_from_initial_to_target():
  got = [int(rank_budget(step, initial=12, target=4, warmup=2, final=2, total=10)) for step in range(10)]
  assert got[:3] == [12, 12, 12] and got[-2:] == [4, 4] and got == sorted(got, reverse=True)
  assert int(rank_budget(5, initial=4, target=4, warmup=0, final=0, total=10)) == 4


def test_the_budget_falls_by_a_cubic():
  got = [int(rank_budget(step, initial=84, target=20, warmup=1, final=1, total=6)) for step in range(7)]
  assert got == [84, 84, 47, 28, 21, 20, 20]  # 20 + 64 (1 - t)^3 at t = 0, 1/4, 1/2, 3/4


@pytest.mark.parametrize("target", [13, -1])
def test_a_budget_that_grows_is_refused(target):
  with pytest.raises(ValueError, match=rf"target must lie in 0\.\.initial = 12: .*; got {target}"):
    rank_budget(0, initial=12, target=target, warmup=0, final=0, total=10)
