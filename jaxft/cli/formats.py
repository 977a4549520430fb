"""`jaxft formats`: what a file of records may hold, with one valid example each."""

import dataclasses
import json

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Formats:
  """Prints the formats of records that files may hold: columns, task, an example, and what others become."""

  markdown: bool = False
  """As a table in Markdown, as the README has it."""


def main(args: list[str]) -> None:
  options = parse(Formats, args, prog="jaxft formats")
  print(as_markdown() if options.markdown else as_text())


def rows() -> list[tuple[str, str, str, str]]:
  """Of each format its name, columns (those that may be missing in brackets), task and example in JSON."""
  from jaxft.data.files.formats import FORMATS

  out = []
  for name, form in FORMATS.items():
    columns = ", ".join([*form.columns, *(f"[{column}]" for column in form.optional)])
    title = name if form.into is None else f"{name} (as {form.into})"
    task = f"--task {form.task}" if form.task else "objectives of your own"
    out.append((title, columns, task, json.dumps(form.example)))
  return out


def as_text() -> str:
  """Two lines a format."""
  from jaxft.data.files.rows import KINDS

  lines = [f"{title}: {columns}; for {task}\n  {example}" for title, columns, task, example in rows()]
  return "\n".join([
      f"Files: {', '.join(KINDS)}, a folder of them, or one that datasets.save_to_disk wrote. Columns of other names "
      "are named by --fields theirs=ours; what a format does not read is left out.", *lines])


def as_markdown() -> str:
  """A table."""
  head = ["| format | columns | for | an example |", "| --- | --- | --- | --- |"]
  return "\n".join(head + [f"| {name} | {columns} | {task} | `{example}` |" for name, columns, task, example in rows()])
