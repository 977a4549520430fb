"""Importing the test modules compiles nothing: every worker imports all of them and runs some of their tests."""

from tests.budget import COMPILED

# Making a key compiles two programs, and a few modules show what they draw in the names of their cases: 91 in all.
MOST = 120


def test_collecting_the_tests_compiles_no_more_than_a_handful_of_programs(request):
  compiled = request.config.stash[COMPILED]
  assert compiled <= MOST, (
      f"importing the test modules compiled {compiled} programs, more than {MOST}: draw module constants by NumPy "
      "(tests/draws.py), or make them in the test or in a fixture")
