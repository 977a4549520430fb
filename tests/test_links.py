"""Relative links of the repository's pages lead somewhere; those of the API reference are checked by `make docs`."""

from pathlib import Path

from tools.docs import broken_links

ROOT = Path(__file__).parents[1]


def test_the_pages_of_the_repository():
  assert not broken_links(ROOT)


def test_what_leads_nowhere_is_named(tmp_path):
  (tmp_path / "a.md").write_text("[b](b.html#here) [c](c.md) [out](https://example.org) [self](#top)")
  (tmp_path / "b.html").write_text('<a id="there" href="a.md"></a><a href="#here"></a><script>`href="${url}"`</script>')
  assert broken_links(tmp_path) == ["a.md: b.html#here", "a.md: c.md", "b.html: #here"]
