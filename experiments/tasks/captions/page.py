"""What the home-made captioner can do before any tuning: `python -m experiments.tasks.captions.page`.

Writes `results/emoji-captioner.json`, `.md` and `.png`; a minute once the captioner and the features are kept.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from experiments.tasks.captions import captioner as task
from experiments.tasks.captions.captioner import Captioner, Recipe, captioner, seen, write
from experiments.tasks.captions.finder import finder, judged
from experiments.tasks.captions.words import references, to_ids, to_text
from experiments.tasks.picture_features import BACKGROUND, described
from jaxft.data import on_background, source
from jaxft.evaluation import caption_faithfulness, retrieval_metrics, token_f1
from jaxft.files import write_atomically, write_text
from jaxft.studies.digest import code_digest
from jaxft.studies.experiment import results_folder

SHOWN = (
    ("emoji/google", "test", "names not seen, a style that was"),
    ("emoji/twitter", "test", "names not seen, a style that was"),
    ("emoji/fluent", "test", "names not seen, a style not seen"),
    ("emoji/fluent", "train", "names seen in other styles, a style not seen"),
    ("clipart", "test", "titles not seen, drawings"))


def captions(made: Captioner, recipe: Recipe, name: str, split: str) -> list[str]:
  """Greedy captions of a split's pictures."""
  pictures = seen(name, split, vision=recipe.towers.vision)
  return to_text(np.asarray(write(made.params, made.config, pictures, None, recipe.longest)), made.words)


def measured(made: Captioner, recipe: Recipe, name: str, split: str) -> dict[str, float]:
  """What captions share with the names, and how often they find their pictures, beside the names themselves."""
  true = references(name, split, limit=recipe.towers.vision.limit)
  names = [" ".join(one.name) for one in true]
  said = captions(made, recipe, name, split)
  pictures = seen(name, split, vision=recipe.towers.vision)
  # Another picture's name, far from it in Unicode's order: what words that many names have give by themselves.
  elsewhere = [*names[len(names) // 2 :], *names[: len(names) // 2]]
  found = {
      "pictures": len(said), "different captions": len(set(said)),
      "words": float(np.mean([len(one.split()) for one in said])),
      "F1": float(np.mean(token_f1(said, names))), "F1 of another's": float(np.mean(token_f1(said, elsewhere))),
      "true words": float(np.mean(caption_faithfulness(said, [" ".join((*one.name, *one.tags)) for one in true]))),
      "chance": 1 / len(said)}
  of_words = finder(recipe)
  for who, texts in (("caption", said), ("name", names)):
    ids = to_ids([text.split() for text in texts], made.words, longest=recipe.longest)
    both = {"": judged(recipe, texts, pictures),
            "finder ": (np.asarray(of_words.texts(ids)), np.asarray(of_words.pictures(pictures)))}
    for retriever, (a, b) in both.items():
      metrics = retrieval_metrics(a @ b.T, np.eye(len(said), dtype=np.int32), ks=(1, 10))
      found |= {f"{retriever}{who} hit@{k}": float(np.mean(metrics[f"hit_rate@{k}"])) for k in (1, 10)}
  return found


def page(found: dict[str, dict[str, float]]) -> str:
  """The measurements as Markdown."""
  columns = list(next(iter(found.values())))
  cell = lambda column, x: str(x) if column in ("pictures", "different captions") else f"{x:.3f}"
  row = lambda what, own: " | ".join([f"| {what}", *(cell(c, own[c]) for c in columns)]) + " |"
  return "\n".join([
      "# A home-made captioner", "",
      (task.__doc__ or "").split("\n\n")[1].replace("\n", " "), "",
      "Greedy captions, without any tuning. `F1`: of the words that a caption shares with the picture's name, beside "
      "`F1 of another's`, the name of the picture half the split away; `true words`: the share of its words that the "
      "name or a tag has. "
      "`caption hit@k`: among the pictures of the split, its own is one of the k nearest to the caption, by the "
      "home-made dual encoder; `name hit@k`: the same of the name, as people write it; `finder`: by the mean of the "
      "words' vectors, the retriever that rewards captions in studies. `chance`: of `hit@1`.", "",
      "| pictures | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns),
      *(row(what, own) for what, own in found.items()), "",
      "![captions](emoji-captioner.png)", "",
      "Pictures of Fluent and of Open Clipart by a fixed draw: the caption, and below it the name.", "",
      "Made by `python -m experiments.tasks.captions.page`; nothing is typed.", ""])


def draw(made: Captioner, recipe: Recipe, target: Any) -> None:
  """Some pictures with their captions and names."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(3, 6, figsize=(12, 6.6), layout="constrained")
  rows = zip(axes, SHOWN[2:], strict=True)
  for line, (name, split, _) in rows:
    records = described(name, split, limit=recipe.towers.vision.limit)
    kept = [row for row in source(name, split) if not np.any(row.get("tones", 0))][: len(records)]
    said = captions(made, recipe, name, split)
    for axis, at in zip(line, np.random.default_rng(0).permutation(len(records))[: len(line)], strict=True):
      axis.imshow(on_background(kept[at]["image"][None], BACKGROUND["plain"])[0])
      own = records[at].get("name") or records[at]["title"]
      axis.set_title(f"{said[at]}\n({own})", fontsize=7, wrap=True)
      axis.axis("off")
  figure.savefig(target, format="png", dpi=60, metadata={"Software": None})
  pyplot.close(figure)


def main() -> None:
  recipe = Recipe()
  made = captioner(recipe)
  found = {f"{name}: {what}": measured(made, recipe, name, split) for name, split, what in SHOWN}
  result = {"recipe": dataclasses.asdict(recipe), "code": code_digest(task.__name__), "words": len(made.words),
            "measured": found}
  folder = results_folder()
  write_text(folder / "emoji-captioner.json", json.dumps(result, indent=1) + "\n")
  write_text(folder / "emoji-captioner.md", page(found))
  write_atomically(folder / "emoji-captioner.png", lambda path: draw(made, recipe, path))
  print(page(found))


if __name__ == "__main__":
  main()
