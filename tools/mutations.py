"""Faults of one line, planted one at a time: do quick tests see them? `python -m tools.mutations`.

    python -m tools.mutations           all of the page `docs/mutations.md`
    python -m tools.mutations GIST      its rows that have this word; the others stay

The tree that git knows is copied, and the copy is edited: the first with no fault, so that what fails later fails for
the fault. Tests run in order and stop at the first that fails, which is the one that the page names.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutations.md"
HEAD = """# Planted faults

Made by `python -m tools.mutations`: each fault is planted by itself in a copy of the tree, by an edit of one line, and
the quick tests of the code that it is in run until one fails. The first ten once passed the whole suite.

| fault | planted in | seen by |
| --- | --- | --- |
"""
SURVIVED = "**nothing**"


class Mutation(NamedTuple):
  """One fault.

  Attributes:
    what: it is, in words.
    file: where it is planted.
    before, after: what stands there, once, and what is put in its place.
    near: files with the tests of what stands there, in the order in which they run, in `tests`.
  """

  what: str
  file: str
  before: str
  after: str
  near: str


PASSED_ONCE = [
    Mutation("DARE: all models of a merge draw the same random numbers", "jaxft/merging/kernels/methods.py",
             "return [stream(seed, path, model) for model in range(models)]",
             "return [stream(seed, path, 0) for model in range(models)]",
             "merging/test_streams.py merging/test_task_vector_merges.py"),
    Mutation("nuslerp: a line in place of an arc from a cosine of 0.9995 on", "jaxft/merging/kernels/methods.py",
             '"linear_above": 1 - 1e-12', '"linear_above": 0.9995',
             "merging/test_angles.py merging/test_streaming.py"),
    Mutation("weights that add up to less than zero: divided by the sum's size",
             "jaxft/merging/kernels/task_vector_sums.py", "(total if abs(total) >= 1e-8",
             "(abs(total) if abs(total) >= 1e-8", "merging/test_edges.py merging/test_task_vector_merges.py"),
    Mutation("tensors of mixed dtypes: the merge has the first model's", "jaxft/merging/streaming/planner.py",
             "return dtypes[0] if len(set(dtypes)) == 1", "return dtypes[0] if dtypes",
             "merging/test_described.py merging/test_streaming.py"),
    Mutation("a true-or-false setting over depth: the nearest point, not the last one passed",
             "jaxft/merging/streaming/recipe_files/settings.py", "return points[int(place)]",
             "return points[round(place)]",
             "merging/test_config.py"),
    Mutation("SCE: models count as equal by a threshold that does not grow with the leaf",
             "jaxft/merging/kernels/variance_selection.py", "np.float32(1e-6 * size)", "np.float32(1e-6)",
             "merging/test_streams.py merging/test_task_vector_merges.py"),
    Mutation("PEFT's alpha_pattern: a key matches the end of a module's name, without the dot before it",
             "jaxft/formats/peft_files/modules.py", r'rf"(.*\.)?({key})$"', r'rf"(.*)?({key})$"',
             "formats/test_peft_files.py"),
    Mutation("LoRA's dropout is left out where a tied table is the head", "jaxft/leaves/low_rank.py",
             "dot_transposed(dot_transposed(self._drop(x), self.b), self.a)",
             "dot_transposed(dot_transposed(x, self.b), self.a)",
             "leaves/test_dropout.py leaves/test_leaf_contract.py"),
    Mutation("GIST: a relative margin has the sign of the guide's similarity", "jaxft/losses/guided_contrastive.py",
             "margin * jnp.abs(guide_positive)", "margin * guide_positive",
             "losses/test_contrastive.py"),
    Mutation("CorDA: the damping is never doubled", "jaxft/transforms/low_rank/corda.py",
             "lambda state: (2 * state[0], state[1] + 1)", "lambda state: (state[0], state[1] + 1)",
             "transforms/test_low_rank.py"),
]
OTHERS = [
    Mutation("texts with the same words in another order count as copies", "jaxft/losses/tokens/text_ids.py",
             "place.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)", "place.astype(jnp.uint32) * jnp.uint32(0)",
             "losses/test_in_batch.py"),
    Mutation("a mean multiplies what does not count by 0, NaN too", "jaxft/losses/reduction.py",
             "jnp.sum(jnp.where(weights != 0, values, 0) * weights, dtype=dtype)",
             "jnp.sum(values * weights, dtype=dtype)",
             "losses/test_reduction.py"),
    Mutation("DoRA: the gradient goes through the norm", "jaxft/transforms/low_rank/dora.py",
             "jnp.sqrt(jax.lax.stop_gradient(column_squares(self.v)))", "jnp.sqrt(column_squares(self.v))",
             "transforms/test_low_rank.py"),
    Mutation("TIES: a tie of votes elects minus", "jaxft/merging/kernels/consensus.py",
             "elected = votes >= 0 if zero_is_positive else votes > 0", "elected = votes > 0",
             "merging/test_task_vector_merges.py merging/test_leafwise.py"),
    Mutation("LiNeS: a stack of one layer gets the first coefficient", "jaxft/merging/lines.py",
             "else np.ones(1)", "else np.zeros(1)",
             "merging/test_lines.py"),
    Mutation("packed rows: the loss is also on each text's first token", "jaxft/data/packing.py",
             'np.where(out["positions"] == 0, 0, out["loss_mask"])', 'np.where(False, 0, out["loss_mask"])',
             "data/test_packing.py"),
    Mutation("hard negatives: a relative margin has the sign of the similarity", "jaxft/data/hard_negatives.py",
             "relative_margin * abs(worst)", "relative_margin * worst",
             "data/test_hard_negatives.py"),
    Mutation("accumulation: all micro-batches draw the same random numbers", "jaxft/training/step.py",
             "merge_scalars(part, batch), jax.random.fold_in(key, j))", "merge_scalars(part, batch), key)",
             "training/test_step.py"),
    Mutation("checksums: values that change places go unnoticed", "jaxft/training/checksums.py",
             "_mix(words + index * np.uint32(0x9E3779B9))", "_mix(words)",
             "training/test_checksums.py"),
    Mutation("GGUF: keys keep their rotary pairs side by side", "jaxft/formats/gguf_llama.py",
             'if "/query/" in rule.path or "/key/" in rule.path:', 'if "/query/" in rule.path:',
             "formats/test_gguf.py"),
]
MUTATIONS = PASSED_ONCE + OTHERS


def copied(folder: Path) -> None:
  """The files that git knows, as they are now."""
  names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  for name in filter(None, names.split("\0")):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)


def first_failure(folder: Path, near: str) -> str | None:
  """The first quick test that fails in a copy of the tree; None where all pass."""
  tests = [f"tests/{name}" for name in near.split()]
  command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-m", "not exhaustive", "-p", "no:cacheprovider"]
  ran = subprocess.run([*command, *tests], cwd=folder, capture_output=True, text=True)
  found = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", ran.stdout, re.MULTILINE)
  if ran.returncode == 0:
    return None
  if ran.returncode != 1 or found is None:
    raise RuntimeError(f"pytest gave {ran.returncode} for {' '.join(tests)}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
  return found[1]


def seen_by(folder: Path, mutation: Mutation) -> str:
  """Plants a fault in a copy of the tree, runs its tests, and takes it out again."""
  file = folder / mutation.file
  text = file.read_text()
  if text.count(mutation.before) != 1:
    raise ValueError(f"{mutation.file} must have this once: {mutation.before}")
  file.write_text(text.replace(mutation.before, mutation.after))
  try:
    return first_failure(folder, mutation.near) or SURVIVED
  finally:
    file.write_text(text)


def rows_of(page: str) -> dict[str, str]:
  """The page's rows by what the fault is."""
  return {row.split(" | ")[0].removeprefix("| "): row for row in page.splitlines() if row.count(" | ") == 2}


def main(word: str = "") -> None:
  chosen = [mutation for mutation in MUTATIONS if word in mutation.what]
  rows = rows_of(PAGE.read_text()) if PAGE.exists() else {}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    copied(folder)
    if failed := first_failure(folder, " ".join(dict.fromkeys(" ".join(m.near for m in chosen).split()))):
      raise RuntimeError(f"{failed} fails without any fault")
    for mutation in chosen:
      seen = seen_by(folder, mutation)
      print(f"{mutation.what}: {seen}", flush=True)
      rows[mutation.what] = f"| {mutation.what} | `{mutation.file}` | {seen if seen == SURVIVED else f'`{seen}`'} |"
  PAGE.write_text(HEAD + "".join(f"{rows[mutation.what]}\n" for mutation in MUTATIONS if mutation.what in rows))


if __name__ == "__main__":
  main(*sys.argv[1:])
