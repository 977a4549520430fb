"""What the home-made dual encoder can do before any tuning: `python -m experiments.tasks.dual_encoder_page`.

Writes `results/emoji-dual-encoder.json` and `.md`; half a minute once the features are kept.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from experiments.tasks import emoji_dual_encoder
from experiments.tasks.emoji_dual_encoder import Params, Recipe, alignment, embed, names, text_features
from experiments.tasks.picture_features import described, features
from jaxft import evaluation
from jaxft.files import write_text
from jaxft.studies.digest import code_digest
from jaxft.studies.experiment import results_folder

HELD_OUT = (
    ("emoji/google", "names not seen, a style that was"), ("emoji/twitter", "names not seen, a style that was"),
    ("emoji/fluent", "names not seen, a style not seen"), ("clipart", "titles not seen, drawings"))


def measured(aligned: Params, recipe: Recipe, name: str) -> dict[str, float]:
  """Retrieval both ways among a data set's held-out pictures and names, zero-shot categories, and where both lie."""
  records = described(name, "test", limit=recipe.vision.limit)
  texts = names(name, "test", limit=recipe.vision.limit)
  known = sorted(set(texts))
  relevance = np.array([[text == one for one in known] for text in texts], np.int32)
  pictures = embed(aligned, "vision", features(name, "test", vision=recipe.vision))
  vectors = embed(aligned, "text", text_features(known, recipe))
  cosines = np.asarray(pictures @ vectors.T)
  found = {"pictures": len(texts), "names": len(known), "chance": 1 / len(known)}
  for way, scores, relevant in (("name", cosines, relevance), ("picture", cosines.T, relevance.T)):
    metrics = evaluation.retrieval_metrics(scores, relevant, ks=(1, 5, 10))
    found |= {f"{way} hit@{k}": float(np.mean(metrics[f"hit_rate@{k}"])) for k in (1, 5, 10)}
  label = lambda row: (row.get("subcategory") or row["path"].split("/")[0]).replace("-", " ").replace("_", " ")
  classes = sorted({label(row) for row in records})
  of_class = embed(aligned, "text", text_features(classes, recipe))
  guessed = np.argmax(np.asarray(pictures @ of_class.T), axis=1)
  right = [classes[i] == label(row) for i, row in zip(guessed, records, strict=True)]
  pairs = np.asarray(vectors)[relevance.argmax(1)]
  return found | {
      "classes": len(classes), "zero-shot": float(np.mean(right)),
      "gap": float(evaluation.modality_gap(pictures, pairs)),
      "alignment": float(np.mean(evaluation.alignment(pairs, pictures))),
      "uniformity": float(evaluation.uniformity(jnp.concatenate([pictures, pairs]))),
  }


def page(found: dict[str, dict[str, float]]) -> str:
  """The measurements as Markdown."""
  columns = list(next(iter(found.values())))
  cell = lambda column, x: str(x) if column in ("pictures", "names", "classes") else f"{x:.3f}"
  row = lambda name, what: " | ".join([f"| {name}: {what}", *(cell(c, found[name][c]) for c in columns)]) + " |"
  return "\n".join([
      "# A home-made dual encoder", "",
      (emoji_dual_encoder.__doc__ or "").split("\n\n")[1].replace("\n", " "), "",
      "Zero-shot, on the test splits, whose names were not seen in training. `name hit@k`: a picture's name is among "
      "the k nearest of all names of the split; `picture hit@k`: the other way around; `chance`: of `name hit@1`. "
      "`zero-shot`: the class of a picture is told by the classes' names, of which there are `classes` (subcategories "
      "of emoji, categories of drawings). `gap`, `alignment` and `uniformity` are those of `jaxft.evaluation`, of "
      "pictures and their names.", "",
      "| test split | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns),
      *(row(name, what) for name, what in HELD_OUT), "",
      "Made by `python -m experiments.tasks.dual_encoder_page`; nothing is typed.", ""])


def main() -> None:
  recipe = Recipe()
  aligned = alignment(recipe)
  found = {name: measured(aligned, recipe, name) for name, _ in HELD_OUT}
  result = {"recipe": dataclasses.asdict(recipe), "code": code_digest(emoji_dual_encoder.__name__), "measured": found}
  write_text(results_folder() / "emoji-dual-encoder.json", json.dumps(result, indent=1) + "\n")
  write_text(results_folder() / "emoji-dual-encoder.md", page(found))
  print(page(found))


if __name__ == "__main__":
  main()
