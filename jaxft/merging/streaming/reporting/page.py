"""The report of a merge, for people: HTML and Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.merging.streaming.plan import Plan
from jaxft.merging.streaming.reporting.overview import groups
from jaxft.merging.streaming.reporting.statistics import MERGED, Distances, measure


def check_report() -> None:
  """Raises ImportError, before any work, where what draws the plots is not installed."""
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    raise ImportError("a report takes matplotlib: pip install 'jaxft[experiments]'") from None


def write_report(plan: Plan, folder: Path, path: Path) -> None:
  """Measures a finished merge and writes `path` (HTML) and the same in Markdown.

  Args:
    plan: what was done.
    folder: with its result.
    path: a file `<stem>.html`.
  """
  measured = measure(plan, folder)
  from jaxft.report import Report  # with JAX, beside which nothing may be forked

  whole = sum(measured.values(), Distances())
  models = list(whole.squares)
  short = _short_names(models)
  based = plan.recipe.base is not None and MERGED in models
  report = Report(f"Merge: {plan.recipe.method} of {len(plan.models)} models")
  report.table(("tensors", "model", "parameters"), [
      row for group in groups(plan) for row in (
          *((group.tensors, short.get(model, model), values) for model, values in group.models),
          (group.tensors, "all", group.parameters))])
  report.heading("How far the models are" + (" from the base" if based else " from the merge"))
  report.table(
      ("model", "norm of the task vector", "relative to the " + ("base" if based else "merge")),
      [(short[m], whole.squares[m] ** 0.5, whole.relative(m)) for m in models])
  _add_layers(report, plan, measured, models, short, based)
  if len(models) > 1:
    report.heading("What they have in common")
    report.text("Share of the entries in which both moved that moved in one direction (two unrelated task vectors: "
                "0.5), and the cosine between the task vectors.")
    report.table(
        ("pair", "signs that agree", "cosine"),
        [(f"{short[a]}, {short[b]}", whole.agreement(a, b), whole.cosine(a, b))
         for i, b in enumerate(models) for a in models[:i]])
    report.figure(_matrix_figure(whole, models, short), "Signs in common, and cosines, pair by pair")
  if plan.notes:
    report.heading("Notes")
    for note in plan.notes:
      report.text(note)
  report.write(path.with_suffix(""))


def _add_layers(
    report: Any, plan: Plan, measured: Mapping[str, Distances], models: Sequence[str], short: Mapping[str, str],
    based: bool,
) -> None:
  layers: dict[int | None, Distances] = {}
  for tensor in plan.tensors:
    if tensor.name in measured:
      layers[tensor.layer] = layers.get(tensor.layer, Distances()) + measured[tensor.name]
  numbered = sorted(layer for layer in layers if layer is not None)
  order = [*numbered, *([None] if None in layers else [])]
  report.heading("By layer")
  report.table(
      ("layer", *(short[m] for m in models)),
      [("outside the layers" if layer is None else layer, *(layers[layer].relative(m) for m in models))
       for layer in order])
  if len(numbered) > 1:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5))
    axes = figure.add_subplot()
    for model in models:
      axes.plot(numbered, [layers[layer].relative(model) for layer in numbered], marker="o", markersize=3,
                label=short[model], linewidth=2.5 if model == MERGED else 1.2)
    axes.set_xlabel("layer")
    axes.set_ylabel("distance / length of the " + ("base" if based else "merge"))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    report.figure(figure, "Relative distance by layer")


def _matrix_figure(whole: Distances, models: Sequence[str], short: Mapping[str, str]) -> Any:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.8))
  kinds = (("signs that agree", whole.agreement, 0.0, 1.0), ("cosine", whole.cosine, -1.0, 1.0))
  for place, (title, value, low, high) in enumerate(kinds):
    axes = figure.add_subplot(1, 2, place + 1)
    cells = [[1.0 if a == b else value(a, b) for b in models] for a in models]
    axes.imshow(cells, vmin=low, vmax=high, cmap="RdBu_r" if low < 0 else "Blues")
    for i, row in enumerate(cells):
      for j, cell in enumerate(row):
        color = "white" if abs(cell) > 0.6 else "black"
        axes.text(j, i, f"{cell:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(models)), [short[m] for m in models], rotation=30, ha="right")
    axes.set_yticks(range(len(models)), [short[m] for m in models])
    axes.set_title(title)
  figure.tight_layout()
  return figure


def _short_names(models: Sequence[str]) -> dict[str, str]:
  """The last parts of paths, where these tell the models apart."""
  last = [Path(model).name for model in models]
  return dict(zip(models, last if len(set(last)) == len(last) else models, strict=True))
