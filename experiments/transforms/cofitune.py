"""CoFiTune: does placing the fine-tuning, and damping what existing abilities rest on, keep more of them?

    jaxft run cofitune            about a quarter of an hour on one core
    jaxft run cofitune --smoke    seconds

all-MiniLM-L6-v2 learns to rate the sentiment of tweets (Spec: Pearson's r), and should still do what it could before
(Vers: the mean of finding the next sentence of an editorial, nDCG@10; a docstring's first sentence from the signature,
nDCG@10; and the accuracy of a probe for the domain of a sentence, fitted once to the pretrained model). As in the
paper, what is compared, and what every choice is made by on validation data, is Uni = Spec + Vers.

Coarse: a tree search over the seven ranges of layers, then attention or MLP in the best one, then their matrices; a
node is fine-tuned for a few steps with the rate of full tuning. Fine: importance of heads and channels, from editorials
without labels. The paper's proxy compares next-token distributions of two passes with dropout; an encoder has none, so
here it is 1 - cosine of its two sentence vectors. Dropout on attention weights is here on what heads put out, and the
output projection of attention, which the paper leaves alone, is masked as the MLP's is.

Arms: full tuning, LoRA, L2 to the start; the best node plain, with (1 - I) on the gradients as the paper's code has it,
and with (1 - I) on the updates after Adam, which is the method. The head trains and the embeddings are frozen in all.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks import docstring_search, sentiment_rating as task
from experiments.tasks.ranking import rank_own
from jaxft.analysis import damping, dropout_consistency, layer_drift, normalize_importance, unit_importance
from jaxft.choices import layer_ranges, tree_search
from jaxft.data import source
from jaxft.data.tokenization import tokenize_texts
from jaxft.evaluation import PairedTest, paired_test, pearson
from jaxft.evaluation.probe import Logistic, fit_logistic
from jaxft.formats import Pretrained, load
from jaxft.losses import Mean, l2_to_reference, normalize
from jaxft.models import encoder
from jaxft.models.dropout import layer_dropout
from jaxft.models.sites import Scale
from jaxft.optimizers import scale_updates
from jaxft.recipes.optimizers import warmed_up
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.transforms import ParamTransform, chain, freeze, lora, train
from jaxft.tree import cut_layers, mask, stack_layers


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "tweets"
  length: int = 14
  sentences: int = 128
  steps: int = 24
  search_steps: int = 16
  ranges: tuple[tuple[int, int], ...] | None = None  # of layers, to search in; None takes the source's seven
  batch_size: int = 12
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  l2: float = 0.01
  rank: int = 8
  dropout: float = 0.003
  importance_batches: int = 16
  ratings: int = 100
  pairs: int = 60
  probe_fit: int = 60
  probe: int = 25
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", ranges=((1, 2),), length=8, sentences=4, steps=1, search_steps=1, batch_size=2,
    learning_rates=(1e-3,), importance_batches=1, ratings=4, pairs=3, probe_fit=4, probe=2, seeds=(0, 1))
BASELINE, METHOD, COARSE, GRADIENT = "full", "update mask", "best node", "gradient mask"

# What of a layer trains, what it may be narrowed to, and the site whose gates own each matrix's columns.
MODULES = {
    "{attention,mlp}/**": ("attention/**", "mlp/**"),
    "attention/**": ("attention/{query,key,value}/*", "attention/out/*"),
    "mlp/**": ("mlp/up/*", "mlp/down/*"),
}
SITES = {
    "layers/attention/heads": "**/attention/{query,key,value}/*", "layers/mlp/hidden": "**/mlp/up/*",
    "layers/mlp/out": "**/mlp/down/*", "layers/attention/out": "**/attention/out/*",
}
Node = tuple[int, int, str]


class Scores(NamedTuple):
  """What a checkpoint can do; higher is better."""

  spec: float  # r of the ratings
  neighbours: float  # nDCG@10
  docstrings: float  # nDCG@10
  domains: float  # accuracy of the pretrained model's probe

  @property
  def vers(self) -> float:
    return float(np.mean(self[1:]))

  @property
  def uni(self) -> float:
    return self.spec + self.vers


class Texts(NamedTuple):
  """All texts of a split, one after the other, how many there are of each kind, and the labels."""

  ids: Int[np.ndarray, "texts time"]
  mask: Int[np.ndarray, "texts time"]
  sizes: tuple[int, ...]  # rated; editorials; their next sentences; signatures; sentences; for the probe
  ratings: Float[np.ndarray, " rated"]
  domains: Int[np.ndarray, " probed"]


def spread(records: Sequence[Any], n: int) -> list[Any]:
  return [records[int(i)] for i in np.linspace(0, len(records) - 1, min(n, len(records)))]


def load_texts(model: Pretrained, split: str, config: Config, *, probe: int) -> Texts:
  """The ratings and the three controls of a split."""
  rated = task.load_sentences(model, config.domain, split, limit=config.ratings, length=config.length)
  editorials = spread(source("sentiment/neighbours-news", split), config.pairs)
  code = docstring_search.load_pairs(split)
  functions = spread(list(zip(code.anchors, code.positives, strict=True)), config.pairs)
  of_domains = [spread(source(f"sentiment/{domain}", split), probe) for domain in task.DOMAINS]
  parts = [
      [r["anchor"] for r in editorials], [r["positive"] for r in editorials], [a for a, _ in functions],
      [p for _, p in functions], [r["text"] for records in of_domains for r in records]]
  tokens = tokenize_texts([text for part in parts for text in part], model.tokenizer, lengths=config.length)
  ids, mask = (np.concatenate(both) for both in ((rated.ids, tokens["ids"]), (rated.mask, tokens["mask"])))
  labels = np.repeat(np.arange(len(of_domains)), [len(records) for records in of_domains])
  return Texts(ids, mask, (len(rated), *map(len, parts)), rated.ratings, labels)


@jax.jit
def cosines(queries: Float[Array, "n dim"], documents: Float[Array, "n dim"]) -> Float[Array, "n n"]:
  return normalize(queries) @ normalize(documents).T


class Judge:
  """Scores checkpoints; compiled once. The probe is fitted to the pretrained model."""

  def __init__(self, model: Pretrained, fit: Texts, *, rows: int = 100):
    def features(params: Any, ids: Int[Array, "n time"], mask: Int[Array, "n time"]) -> Float[Array, "n dim"]:
      hidden, _ = encoder.hidden_states(params, model.config, ids, mask)
      return encoder.pool(hidden, mask, pooling="mean", normalize=False)

    self._features, self._rows = jax.jit(features), rows
    on = self._parts(task.with_head(model.params), fit)[-1]  # as all that is scored: a tree of one structure
    self._probe: Logistic = fit_logistic(jnp.asarray(on), jnp.asarray(fit.domains), classes=len(task.DOMAINS))

  def _parts(self, params: Any, texts: Texts) -> list[np.ndarray]:
    n = len(texts.ids)
    fill = -n % self._rows  # one shape for all batches
    ids, mask = (np.pad(x, ((0, fill), (0, 0)), mode="edge") for x in (texts.ids, texts.mask))
    found = [self._features(params, ids[i : i + self._rows], mask[i : i + self._rows])
             for i in range(0, n + fill, self._rows)]
    return np.split(np.concatenate([np.asarray(f) for f in found])[:n], np.cumsum(texts.sizes)[:-1])

  def __call__(self, params: Any, texts: Texts) -> Scores:
    rated, *pairs, probed = self._parts(params, texts)
    predicted = rated @ np.asarray(params["head"]["kernel"])[:, 0]
    r = float(pearson(predicted, texts.ratings))

    retrieval = lambda queries, documents: rank_own(cosines(queries, documents))["ndcg"]
    right = np.argmax(self._probe.logits(probed), axis=-1) == texts.domains
    return Scores(r, retrieval(*pairs[:2]), retrieval(*pairs[2:]), float(np.mean(right)))


def importances(model: Pretrained, config: Config) -> dict[str, Float[Array, "layers units"]]:
  """|tanh z| of heads and channels by site, from editorials of the training split."""
  c = model.config
  gates = {site: jnp.ones((c.num_layers, units))
           for site, units in zip(SITES, (c.num_heads, c.mlp_dim, c.dim, c.dim), strict=True)}
  heads, _, out, _ = SITES

  def vectors(gates: Any, batch: Any, key: jax.Array) -> Float[Array, "batch dim"]:
    edits = {site: [Scale(gate[..., None] if site == heads else gate)] for site, gate in gates.items()}
    for site, k in zip((heads, out), jax.random.split(key), strict=True):
      edits[site].append(layer_dropout(k, c.num_layers, config.dropout))
    return encoder.embed(model.params, c, batch["ids"], batch["mask"], edits=edits)

  records = spread(source("sentiment/neighbours-news", "train"), config.importance_batches * config.batch_size)
  tokens = tokenize_texts([r["anchor"] for r in records], model.tokenizer, lengths=config.length)
  batches = [{name: x[i::config.importance_batches] for name, x in tokens.items()}
             for i in range(config.importance_batches)]
  proxy = dropout_consistency(vectors, lambda a, b: 1 - jnp.sum(a * b, axis=-1))
  return normalize_importance(unit_importance(proxy, gates, batches, jax.random.key(0)))


def cut(params: Any, node: Node, layers: int) -> Any:
  """The params with a stack of their own for the node's layers, so that none below them has a backward pass."""
  return cut_layers(params, [i for i in node[:2] if 0 < i < layers])


def train_node(node: Node) -> ParamTransform:
  """The node's matrices and the head."""
  start, stop, modules = node
  return train([f"layers/{start}:{stop}/{modules}", "head/**"])


def masked(before: Any = 1.0, after: Any = 1.0) -> Callable[[Any, int], optax.GradientTransformation]:
  """`adamw` with factors on the clipped gradients and on the updates: trees like what trains, or 1."""
  scale = lambda factors: [] if isinstance(factors, float) else [scale_updates(factors)]

  def optimizer(rate: Any, steps: int) -> optax.GradientTransformation:
    factor = warmed_up(steps)
    adam = optax.adam(lambda t: rate * factor(t))
    return optax.chain(optax.clip_by_global_norm(1.0), *scale(before), adam, *scale(after))

  return optimizer


def pulled_to_start(model: Pretrained, base: Any, weight: float):
  """The task's objective with `weight * |params - base|^2 / 2` over the layers."""
  plain = task.objective(model)

  def loss(params: Any, batch: task.Sentences, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    mean, metrics = plain(params, batch, key)
    penalty = weight * l2_to_reference(params["layers"], base["layers"])
    return Mean(mean.total + penalty * mean.weight, mean.weight), metrics

  return loss


def run(config: Config) -> Result:
  """Searches on validation data, tunes every arm there and measures it on test data."""
  ledger = Ledger("cofitune", config)
  model = load(config.model)
  base, layers = task.with_head(model.params), model.config.num_layers
  data = task.load_sentences(model, config.domain, "train", limit=config.sentences, length=config.length)
  judge = Judge(model, load_texts(model, "train", config, probe=config.probe_fit))
  texts = {split: load_texts(model, split, config, probe=config.probe) for split in ("validation", "test")}
  objective, above = task.objective(model), freeze("embed/**")

  def learn(tuner: Tuner, params: Any, rate: float, seed: int) -> Any:
    batches = task.draw_batches(data, steps=tuner.steps, batch_size=config.batch_size, seed=seed)
    tuned = tuner(params, batches, rate=rate, seed=seed)
    return tuned if params is base else stack_layers(tuned)

  def scored(name: str, tuner: Tuner, params: Any, rate: float, seed: int, split: str) -> Scores:
    return Scores(*ledger(f"{name}, {rate}, seed {seed}, {split}, {tuner.steps} steps",
                          lambda: judge(learn(tuner, params, rate, seed), texts[split])))

  def tune(name: str, tuner: Tuner, params: Any) -> tuple[float, dict[str, float]]:
    return choose_rate(config.learning_rates,
                       lambda rate: scored(name, tuner, params, rate, config.tuning_seed, "validation").uni)

  tuners = {
      BASELINE: (Tuner(objective, above, steps=config.steps), base),
      "LoRA": (Tuner(objective, chain(lora("layers/**/kernel", rank=config.rank, alpha=2.0 * config.rank),
                                      train("head/**")), steps=config.steps), base),
      "L2 to the start": (Tuner(pulled_to_start(model, base, config.l2), above, steps=config.steps), base),
  }
  rates, tuning = {}, {}
  rates[BASELINE], tuning[BASELINE] = tune(BASELINE, *tuners[BASELINE])

  node_tuner = cache(lambda node, steps: Tuner(objective, train_node(node), steps=steps))

  def try_node(node: Node) -> float:
    tuner = node_tuner(node, config.search_steps)
    return scored(str(node), tuner, cut(base, node, layers), rates[BASELINE], config.tuning_seed, "validation").uni

  narrower = lambda node: [(*node[:2], modules) for modules in MODULES.get(node[2], ())]
  search = tree_search([(*r, next(iter(MODULES))) for r in config.ranges or layer_ranges(layers)], narrower, try_node)
  node, at_node = search.best, cut(base, search.best, layers)
  important = importances(model, config)
  factors = mask_of(node, at_node, important)
  tuners[COARSE] = node_tuner(node, config.steps), at_node
  for name, optimizer in ((GRADIENT, masked(before=factors)), (METHOD, masked(after=factors))):
    tuners[name] = Tuner(objective, train_node(node), steps=config.steps, optimizer=optimizer), at_node

  scores = {}
  for name, (tuner, params) in tuners.items():
    rates[name], tuning[name] = tune(name, tuner, params)
    scores[name] = [scored(name, tuner, params, rates[name], seed, "test") for seed in config.seeds]
  moved = ledger("moved", lambda: compare_moves(
      {name: learn(*tuners[name], rates[COARSE], config.seeds[0]) for name in (COARSE, GRADIENT, METHOD)}, base))
  before = judge(base, texts["test"])

  arms = {name: Arm(name, tuple(s.uni for s in runs), {"learning_rate": rates[name]}) for name, runs in scores.items()}
  tests = {name: against(runs, scores[BASELINE]) for name, runs in scores.items() if name != BASELINE}
  damped = {site: {"mean": float(jnp.mean(i)), "above_0.9": float(jnp.mean(i > 0.9))}
            for site, i in important.items()}
  supports, conclusion = conclude(scores, tests, against(scores[METHOD], scores[COARSE]), node, moved)
  ledger.clear()
  return Result(
      slug="cofitune", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Uni: r of ratings of {config.domain} plus the mean of three other abilities, test split",
      higher_is_better=True, baseline=arms[BASELINE], method=arms[METHOD],
      arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, METHOD)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "before": before._asdict() | {"vers": before.vers},
          "scores": {name: [s._asdict() | {"vers": s.vers} for s in runs] for name, runs in scores.items()},
          "mean": {
              name: {"spec": float(np.mean([s.spec for s in runs])), "vers": float(np.mean([s.vers for s in runs]))}
              for name, runs in scores.items()},
          "validation_uni": tuning, "against_full": tests,
          "update_mask_against_best_node": against(scores[METHOD], scores[COARSE]),
          "gradient_mask_against_best_node": against(scores[GRADIENT], scores[COARSE]),
          "search": {"best": node, "path": search.path, "uni": {str(n): uni for n, uni in search.scores.items()}},
          "moved": moved, "importance": damped,
      })


def mask_of(node: Node, params: Any, important: dict[str, Any]) -> Any:
  """The factors 1 - I for what a node trains; the head has none."""
  _, trainable = jax.eval_shape(train_node(node).split, jax.random.key(0), params)
  trains = lambda glob: any(jax.tree.leaves(mask(glob, trainable, allow_empty=True)))
  return damping(trainable, {glob: important[site] for site, glob in SITES.items() if trains(glob)})


def compare_moves(tuned: dict[str, Any], base: Any) -> dict[str, Any]:
  """How far each of three runs of one seed and rate moved, and how far its displacement is from the plain node's."""
  moved = lambda params: [np.asarray(a - b).ravel() for a, b in zip(
      jax.tree.leaves(params["layers"]), jax.tree.leaves(base["layers"]), strict=True)]
  flat = {name: np.concatenate(moved(params)) for name, params in tuned.items()}
  size = max(np.linalg.norm(flat[COARSE]), 1e-12)
  return {name: {"size": float(np.linalg.norm(x)), "from_best_node": float(np.linalg.norm(x - flat[COARSE]) / size),
                 "drift_by_layer": layer_drift(base, tuned[name])[:-1].tolist()} for name, x in flat.items()}


def against(runs: list[Scores], others: list[Scores]) -> dict[str, PairedTest]:
  """Paired tests of Spec, Vers and Uni."""
  return {name: paired_test(*([getattr(s, name) for s in side] for side in (runs, others)))
          for name in ("spec", "vers", "uni")}


def conclude(
    scores: dict[str, list[Scores]], tests: dict[str, Any], fine: dict[str, Any], node: Node, moved: dict[str, Any]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": the update mask has higher Vers and Uni than full tuning (p < 0.05 each). "partly": Vers alone, or Uni without
  Vers being lower (p < 0.05). Else "false".
  """
  three = lambda compared: ", ".join(f"{name.capitalize()} {compared[name]}" for name in ("spec", "vers", "uni"))
  best = max(scores, key=lambda name: np.mean([s.uni for s in scores[name]]))
  sentence = (
      f"The search chose {node[2]} of layers {node[0]} to {node[1] - 1}. There, with masked updates, against full "
      f"tuning: {three(tests[METHOD])}; against the node without a mask: {three(fine)}. Masking the gradients before "
      f"Adam changes the displacement by {moved[GRADIENT]['from_best_node']:.2%} of its size, masking the updates by "
      f"{moved[METHOD]['from_best_node']:.0%}. The best Uni is that of {best}.")
  sign = {name: test.sign for name, test in tests[METHOD].items()}
  if sign["vers"] > 0 and sign["uni"] > 0:
    return "true", sentence
  return ("partly" if sign["vers"] > 0 or (sign["uni"] > 0 and sign["vers"] >= 0) else "false"), sentence


EXPERIMENT = Experiment(
    slug="cofitune", title="Balancing Speciality and Versatility: a Coarse to Fine Framework (CoFiTune)",
    arxiv="2404.10306", areas=("transforms", "analysis", "training"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
