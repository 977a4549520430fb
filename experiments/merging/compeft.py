"""ComPEFT: how much of a fine-tune survives as signs of its largest entries and one magnitude, and in how many bits?

    jaxft run compeft            five minutes on two cores, and six more where the experts have to be trained first
    jaxft run compeft --smoke    seconds

The task vectors of all-MiniLM-L6-v2 fine-tuned on four sentiment domains (`tasks/sentiment_experts.py`), 10.6
million entries each, are compressed and added back to the base; the score is Pearson's r of predicted and human ratings
on the domain's own test sentences, the mean over the domains. At each density k, the same entries are kept by all arms:

    ComPEFT            signs of the kept, times alpha times the standard deviation of all entries
    pruned, rescaled   the kept entries themselves, times alpha
    pruned             the kept entries themselves
    STC                signs of the kept, times their mean magnitude

Alpha is chosen for each density by the mean over the domains on validation sentences, with the experts of a tuning
seed, from one grid for both arms that have it; so is the density of the comparison. "16 bits" is the task vector in
bfloat16, the size that all ratios refer to. At the chosen density every task vector goes through a Golomb-coded file.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import sentiment_experts
from experiments.tasks.sentiment_experts import TUNING_SEED, Experts, Recipe
from experiments.tasks.sentiment_rating import DOMAINS, Scorer, load_sentences
from jaxft.evaluation.uncertainty import paired_test
from jaxft.merging import Ternary, compression_report, load_ternary, save_ternary, ternarize
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.tree import apply_task_vector


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
  alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
  sentences: int = 64  # of each domain and split
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  domains: tuple[str, ...] = DOMAINS


SMOKE = Config(
    recipe=sentiment_experts.SMOKE, densities=(0.1,), alphas=(1.0,), sentences=4, seeds=(0, 1), domains=DOMAINS[:1])

METHOD, RESCALED, PRUNED, STC, WHOLE = "ComPEFT", "pruned, rescaled", "pruned", "STC", "16 bits"
TUNED = (METHOD, RESCALED)


def compressed(delta: Any, density: float) -> dict[str, Any]:
  """What each arm keeps of a task vector: ternary trees, and the tree of the kept entries."""
  ternary = ternarize(delta, density=density)
  kept = jax.tree.map(lambda d, s: jnp.where(s != 0, d, 0.0), delta, ternary.signs)
  mean = sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(kept)) / sum(
      jnp.count_nonzero(s) for s in jax.tree.leaves(ternary.signs))
  return {METHOD: ternary, RESCALED: kept, PRUNED: kept, STC: Ternary(ternary.signs, mean)}


def run(config: Config) -> Result:
  """Chooses alpha and density with the tuning seed's experts, then compresses and scores those of every seed."""
  ledger, experts = Ledger("compeft", config), Experts(config.recipe)
  score, length = Scorer(experts.model, batch_size=config.sentences), config.recipe.length
  held = {(d, split): load_sentences(experts.model, d, split, limit=config.sentences, length=length)
          for d in config.domains for split in ("validation", "test")}

  def added(tree: Any, alpha: float, data: Any) -> float:
    tree = tree.dense() if isinstance(tree, Ternary) else tree
    return score(apply_task_vector(experts.base, tree, scale=alpha), data)

  def search(domain: str) -> list[list[list[float]]]:
    """Validation scores of an expert, `[tuned arms, densities, alphas]`."""
    parts = [compressed(experts.vector(domain, TUNING_SEED), density) for density in config.densities]
    return [[[added(part[arm], alpha, held[domain, "validation"]) for alpha in config.alphas] for part in parts]
            for arm in TUNED]

  grid = np.mean([ledger(f"tune {domain}", lambda: search(domain)) for domain in config.domains], axis=0)
  best = {arm: grid[i].argmax(axis=-1) for i, arm in enumerate(TUNED)}
  alphas = {arm: [config.alphas[best[arm][i]] if arm in TUNED else 1.0 for i in range(len(config.densities))]
            for arm in (METHOD, RESCALED, PRUNED, STC)}
  chosen = int(grid[0].max(axis=-1).argmax())

  def expert(domain: str, seed: int) -> dict[str, Any]:
    """Test scores of an expert's compressions and what they take."""
    delta, data, out = experts.vector(domain, seed), held[domain, "test"], {}
    out[WHOLE] = added(jax.tree.map(lambda x: x.astype(jnp.bfloat16), delta), 1.0, data)
    for i, density in enumerate(config.densities):
      parts = compressed(delta, density)
      bits = compression_report(parts[METHOD])
      if i == chosen:
        parts[METHOD], bits["file_bits"] = through_file(parts[METHOD], experts.base)
      out[f"bits {i}"] = bits
      out |= {f"{arm} {i}": added(parts[arm], alphas[arm][i], data) for arm in alphas}
    return out

  runs = [[ledger(f"{domain} {seed}", lambda: expert(domain, seed)) for domain in config.domains]
          for seed in config.seeds]
  values = lambda name: tuple(float(np.mean([record[name] for record in row])) for row in runs)
  mean_bits = [{key: float(np.mean([record[f"bits {i}"][key] for row in runs for record in row]))
                for key in runs[0][0][f"bits {i}"]} for i in range(len(config.densities))]

  def arm(name: str, i: int) -> Arm:
    density = config.densities[i]
    return Arm(f"{name}, {density:.0%}", values(f"{name} {i}"), {"density": density, "alpha": alphas[name][i]})

  arms = {(name, i): arm(name, i) for name in alphas for i in range(len(config.densities))}
  baseline, method = arms.pop((RESCALED, chosen)), arms.pop((METHOD, chosen))
  whole = Arm(WHOLE, values(WHOLE))
  supports, conclusion = conclude(
      method, baseline, whole, arms[PRUNED, chosen], arms[STC, chosen], mean_bits[chosen])
  result = Result(
      slug="compeft", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="Pearson's r with human ratings, mean over the domains, test", higher_is_better=True,
      baseline=baseline, method=method, arms=(whole, *arms.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "validation": {name: grid[i].tolist() for i, name in enumerate(TUNED)},
          "densities": config.densities, "alphas": config.alphas, "chosen_density": config.densities[chosen],
          "bits": mean_bits,
          "by_domain": {d: {name: float(np.mean([row[j][name] for row in runs])) for name in runs[0][0]
                            if not name.startswith("bits")} for j, d in enumerate(config.domains)},
          "against_16_bits": {
              a.name: paired_test(a.values, whole.values) for a in (method, baseline, *arms.values())},
      })
  ledger.clear()
  return result


def through_file(ternary: Ternary, base: Any) -> tuple[Ternary, int]:
  """A ternary task vector as it comes back from its file, and the bits that it took there."""
  with tempfile.TemporaryDirectory() as folder:
    size = save_ternary(Path(folder) / "expert", ternary, base)
    return load_ternary(Path(folder) / "expert", base), 8 * size


def conclude(
    method: Arm, baseline: Arm, whole: Arm, pruned: Arm, stc: Arm, bits: dict[str, float]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentences that say so.

  "true": at the chosen density ComPEFT is better than both prunings (p < 0.05) and not worse than 16 bits (p < 0.05).
  "partly": one of the two. Else "false".
  """
  test = lambda other: paired_test(method.values, other.values)
  against = {a.name: test(a) for a in (whole, baseline, pruned, stc)}
  sentence = (
      f"{method.name} with alpha {method.settings['alpha']:g}, {bits['dense_bits'] / bits['file_bits']:.1f} times "
      f"smaller on disk than 16 bits ({bits['file_bits'] / bits['size']:.3f} bits an entry, entropy "
      f"{bits['entropy_bits'] / bits['size']:.3f}), differs by " + ", ".join(
          f"{t} from {name}" for name, t in against.items()) + ".")
  holds = against[whole.name].sign >= 0
  wins = against[baseline.name].sign > 0 and against[pruned.name].sign > 0
  return ("true" if wins and holds else "partly" if wins or holds else "false"), sentence


EXPERIMENT = Experiment(
    slug="compeft",
    title="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization",
    arxiv="2311.13171", areas=("merging",), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
