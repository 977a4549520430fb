"""The table of losses is that of the docstrings."""

from tools.loss_table import PAGE, page


def test_the_table_is_up_to_date():
  assert PAGE.read_text() == page(), "run `python -m tools.loss_table`"
