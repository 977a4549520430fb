"""The page of planted faults has those that `tools/mutations.py` plants in the code as it is; all are seen."""

import pytest

from tools.mutations import HEAD, MUTATIONS, PAGE, ROOT, SURVIVED


def test_every_planted_fault_is_seen_by_a_quick_test():
  rows = PAGE.read_text().removeprefix(HEAD).splitlines()
  assert [row.split(" | ")[:2] for row in rows] == [[f"| {m.what}", f"`{m.file}`"] for m in MUTATIONS]
  assert SURVIVED not in PAGE.read_text()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what)
def test_a_fault_is_planted_where_it_says(mutation):
  assert (ROOT / mutation.file).read_text().count(mutation.before) == 1 and mutation.before != mutation.after
  assert all((ROOT / "tests" / name).exists() for name in mutation.near.split())
