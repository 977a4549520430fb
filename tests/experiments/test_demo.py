"""`make demo`'s module, in small: the real model, the real data, and a report that stands by itself."""

import re

from experiments import demo


def test_demo_writes_a_self_contained_report(tmp_path):
  scores = demo.main(demo.SMOKE, tmp_path / "report")
  assert set(scores) == {"before", "after", "uniform 0.5", "LiNeS 0", "LiNeS 0.5"}
  page = (tmp_path / "report.html").read_text()
  assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
  assert page.count("data:image/png;base64,") == 2
  for text in ("peak memory", "2402.16829", "2410.17146", f"{scores['after'].ndcg:.4f}"):
    assert text in page
  markdown = (tmp_path / "report.md").read_text()
  for figure in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
    assert (tmp_path / figure).stat().st_size > 1000
  # The pretrained encoder finds far more than chance among 24.
  assert scores["before"].ndcg > 0.4
