"""The package as a whole: what importing it costs and what it may not import."""

import subprocess
import sys

import pytest


def test_neither_torch_nor_tensorflow_is_imported():
  code = (
      "import sys, jaxft\n"
      "for area in jaxft.AREAS: getattr(jaxft, area)\n"
      "assert not {'torch', 'tensorflow', 'transformers', 'peft'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light():
  subprocess.run([sys.executable, "-c", "import sys, jaxft; assert 'jax' not in sys.modules"], check=True)


def test_an_unknown_area_is_answered_with_the_known():
  import jaxft

  with pytest.raises(AttributeError, match="no attribute .loses.; it has Mean, Recipe, adapters, analysis"):
    _ = jaxft.loses
