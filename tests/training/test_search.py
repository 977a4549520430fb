"""The search for a mesh, with plans that are made up: what is compiled, in which order, and what is kept."""

import dataclasses

import pytest

from jaxft.analysis.flops import Flops
from jaxft.training.planning.collectives import Collective
from jaxft.training.planning.plan import Compiled, DoesNotFit, Plan
from jaxft.training.planning.search import Candidate, Tried, candidates, key_of, nothing_fits, search, table

GB = 10**9


class Planner:
  """Plans by a rule, which remembers what it was asked to compile."""

  def __init__(self):
    self.compiled = []

  def __call__(self, c, compile):
    if c.accumulate == 3:
      raise ValueError("rows must divide by accumulate=3")
    state = 20 * GB // c.fsdp
    flops = Flops(16 * 197e12 * (0.1 if c.remat == "dots" else 0.2), 0.0, frozenset())
    made = Plan(16, 1, 1, 0, state, 0, 0, 0, 0, flops, None)
    if not compile:
      return made
    self.compiled.append(c)
    if c.tensor == 4:
      raise DoesNotFit("18 of 15.75 GB")
    sent = Collective("all-gather", "fsdp", 1, (30 if c.remat == "dots" else 1) * GB * c.tensor)
    held = 17 * GB if c.remat == "dots" and c.tensor == 2 else 3 * GB
    return dataclasses.replace(made, compiled=Compiled(0.0, held, 0, 0, 0, (sent,)))


def test_what_fits_comes_first_by_time_and_what_was_compiled_is_kept(tmp_path):
  tried = candidates(16, heads=4, tensor=(1, 2, 3, 4), parts=(1, 16), accumulate=(1, 3))
  assert len(tried) == (3 + 1) * 2 * 2 and all(c.tensor != 3 for c in tried)
  planner, cache, said = Planner(), tmp_path / "cache" / "plans.jsonl", []
  found = search(tried, planner, "v5e", cache=cache, key="a", update=said.append)
  assert [(r.candidate.remat, r.candidate.tensor, r.fits, r.bound) for r in found if not r.refused] == [
      ("dots", 1, True, "interconnect"), ("full", 1, True, "compute"), ("full", 2, True, "compute"),
      ("dots", 2, False, "interconnect"), *[(remat, 4, False, "memory of the chip") for remat in ("dots", "full")]]
  assert found[0].seconds == pytest.approx(0.15) and found[1].seconds == pytest.approx(0.2)
  assert {r.refused for r in found if r.candidate.accumulate == 3} == {"rows must divide by accumulate=3"}
  assert all("state alone" in r.refused for r in found if r.candidate.fsdp == 1 and r.candidate.accumulate == 1)
  assert [c.remat for c in planner.compiled] == ["dots"] * 3 + ["full"] * 3, "the least to compute first"
  assert sum(line.startswith("compiling") for line in said) == 6
  shown = table(found, "v5e")
  assert "| 1 | 16 | 1 | dots | 1 | 8 | 150.0 ms | interconnect | 3.00 GB | 19% |" in shown
  assert "| does not fit |" in shown and "rows must divide" in shown

  # Killed while it wrote: the whole lines count, the half one is made again.
  cache.write_text(cache.read_text()[:-40])
  again = Planner()
  assert search(tried, again, "v5e", cache=cache, key="a") == found
  assert again.compiled == planner.compiled[-1:]
  assert not (later := Planner()).compiled and search(tried, later, "v5e", cache=cache, key="a") == found
  assert not later.compiled
  other = Planner()
  search(tried, other, "v5e", cache=cache, key="another model")
  assert len(other.compiled) == 6


def test_only_the_most_promising_are_compiled():
  planner = Planner()
  found = search(candidates(16, heads=4, parts=(1,)), planner, "v5e", most=2)
  assert len(planner.compiled) == 2 and {c.remat for c in planner.compiled} == {"dots"}
  assert sum("only the 2 most promising" in r.refused for r in found) == len(found) - 2


def test_a_key_changes_with_what_is_run():
  assert key_of([1, "v5e:4x4"]) == key_of([1, "v5e:4x4"]) != key_of([2, "v5e:4x4"])
  assert str(Candidate(1, 2, 3, "full", 4, 5)) == "data 1, fsdp 2, tensor 3, remat full, accumulate 4, rank 5"


def test_the_nearest_of_what_does_not_fit():
  one = candidates(16, heads=4, tensor=(1,), parts=(1,), remat=("full",), accumulate=(1,))[0]
  compiled, unknown = Tried(one, 0.1, "compute", 30 * GB), Tried(one, peak=9 * GB, bound="memory of the chip")
  refused = Tried(one, peak=20 * GB, refused="its state alone does not fit")
  assert "takes 30.00 GB of a chip's" in nothing_fits([refused, unknown, compiled], "v5e")
  assert "takes at least 9.00 GB of a chip's" in nothing_fits([refused, unknown], "v5e")
  assert nothing_fits([refused], "v5e").endswith("GB (its state alone does not fit)")
  assert nothing_fits([Tried(one, refused="no")], "v5e").endswith("rank 8: no")
