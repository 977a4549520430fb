"""A store of each kind, with the variables that lead to it and the signs of a quick test: short periods."""

import pytest

from tests.cli.conftest import jaxft, pairs, tiny  # noqa: F401  # fixtures
from tests.stores import servers


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
  """Copies and folders of runs lie in a cache of the test's own."""
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def s3_server():
  with servers.s3() as proxy:
    yield proxy


@pytest.fixture(scope="session")
def gs_server():
  with servers.gs() as proxy:
    yield proxy


@pytest.fixture(params=["s3", pytest.param("gs", marks=pytest.mark.exhaustive)])
def at(request, monkeypatch, tmp_path):
  """`(proxy, URL)` of an empty place in a store."""
  proxy = request.getfixturevalue(f"{request.param}_server")
  for name, value in {
      "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
      "AWS_EC2_METADATA_DISABLED": "true", "TENSORSTORE_GCS_HTTP_URL": proxy.url, "GCE_METADATA_ROOT": "localhost:1",
  }.items():
    monkeypatch.setenv(name, value)
  yield proxy, f"{request.param}://{servers.BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"
  proxy.delay = proxy.refused = 0.0
