"""What a fresh machine cannot fetch is skipped by its name; a package of Python is no such thing, nor a wrong hash."""

import contextlib
from collections.abc import Iterator

import pytest

from jaxft.fetch import NotAvailable


@contextlib.contextmanager
def or_skipped() -> Iterator[None]:
  try:
    yield
  except NotAvailable as e:
    pytest.skip(str(e))
