"""A report for people: prose, tables and figures, written as one self-contained HTML page and as Markdown."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.files import write_text

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2129 }
body { max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #d9dde3 }
th { border-bottom: 2px solid #8a919c } th:first-child, td:first-child { text-align: left }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { color: #5a6270; font-size: .9rem }
code { background: #f1f3f5; padding: .1rem .3rem; border-radius: 3px }
@media (prefers-color-scheme: dark) {
  body { background: #15181d; color: #dfe3e8 } code { background: #252a31 } img { background: #fff; border-radius: 4px }
  th, td { border-color: #333a44 } figcaption { color: #9aa3af }
}
"""


class Report:
  """Collects sections in order; `write` makes both files.

      report = Report("Title")
      report.heading("Results")
      report.text("Prose.")
      report.table(("name", "value"), [("a", 1.0)])
      report.figure(figure, "what it shows")
      report.write("report")          # report.html, report.md, report_figures/
  """

  def __init__(self, title: str):
    self.title = title
    self._html: list[str] = [f"<h1>{html.escape(title)}</h1>"]
    self._markdown: list[str] = [f"# {title}\n"]
    self._figures: list[bytes] = []

  def heading(self, text: str) -> None:
    """Starts a section."""
    self._html.append(f"<h2>{html.escape(text)}</h2>")
    self._markdown.append(f"## {text}\n")

  def text(self, text: str) -> None:
    """A paragraph of plain text."""
    self._html.append(f"<p>{html.escape(text)}</p>")
    self._markdown.append(f"{text}\n")

  def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; floats get four decimals."""
    cells = [[_cell(x) for x in row] for row in rows]
    line = lambda tag, row: "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>"
    self._html.append("<table>" + line("th", header) + "".join(line("td", row) for row in cells) + "</table>")
    lines = [" | ".join(header), " | ".join(["---"] * len(header)), *(" | ".join(row) for row in cells)]
    self._markdown.append("\n".join(f"| {x} |" for x in lines) + "\n")

  def figure(self, figure: Any, caption: str) -> None:
    """A matplotlib figure with its caption."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    self._figures.append(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    self._html.append(
        f'<figure><img alt="{html.escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
    self._markdown.append(f"![{caption}]({{figures}}/{len(self._figures)}.png)\n")

  def write(self, stem: str | Path) -> tuple[Path, Path]:
    """Writes `<stem>.html` (figures inside), `<stem>.md` and its `<stem>_figures/`; returns the first two."""
    stem = Path(stem)
    page, markdown = stem.with_name(stem.name + ".html"), stem.with_name(stem.name + ".md")
    folder = stem.with_name(stem.name + "_figures")
    folder.mkdir(parents=True, exist_ok=True)
    for i, figure in enumerate(self._figures, start=1):
      (folder / f"{i}.png").write_bytes(figure)
    write_text(
        page,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(self._html) + "\n</body></html>\n",
    )
    write_text(markdown, "\n".join(self._markdown).replace("{figures}", folder.name))
    return page, markdown


def _cell(x: Any) -> str:
  return f"{x:.4f}" if isinstance(x, float) else str(x)
