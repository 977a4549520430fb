"""PEFT for code: from a few examples of one-line Python, is it better to tune a little or to show them in the prompt?

    jaxft run peft-for-code            about a quarter of an hour on one core
    jaxft run peft-for-code --smoke    seconds

SmolLM2-135M-Instruct writes the line that a description asks for (`tasks/one_line_python.py`). A seed draws the
examples: the training data of the tuned arms and, the same ones, the bank that prompts take their demonstrations from.
The score is exact match, read off one forward pass (greedy decoding gives the line exactly when each of its tokens is
the likeliest), with the likelihood of the line beside it.

Baseline: two examples drawn at random in the prompt. Method: LoRA. The other arms: no example, the two examples nearest
by MiniLM, the two nearest of all training problems (more data, the same for all seeds), a soft prompt that
starts from the instruction, (IA)^3 and full tuning. Settings are the paper's: LoRA of rank 16 on queries, keys and
values, (IA)^3 on all matrices but the output projection, Adafactor, a linear schedule; without dropout, and with eight
tokens in place of twenty for the prompt. The learning rate of each arm is the paper's for it or ten times that, as
steps are few; it is chosen by the likelihood of validation problems with a seed of its own. On a few problems the first
seed's models search with beams, for EM@k and whether the line does what it should when run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.tasks import one_line_python as task
from experiments.tasks.reasoning_answers import Rows, Scorer, objective
from jaxft.adapters import Adapter, prefix, prefix_from_tokens, soft_prompt, text_prompt
from jaxft.data import retrieve_demonstrations, tokenize_completions
from jaxft.decoding import beam_search, stepwise_decoder
from jaxft.evaluation import exact_match_at_k, paired_test
from jaxft.evaluation.embed import embed_texts
from jaxft.formats import Pretrained, load
from jaxft.models import decoder, encoder
from jaxft.recipes.optimizers import warmed_up
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, full, ia3, lora, train


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2-135m"
  retriever: str = "minilm-l6"
  examples: int = 24
  shots: int = 2
  steps: int = 6
  batch_size: int = 4
  prompt_length: int = 8
  rate_factors: tuple[float, ...] = (1.0, 10.0)  # of the paper's rate for the arm
  validation: int = 12
  test: int = 36
  beams: int = 5
  beam_problems: int = 12
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="smollm2-135m:tiny", retriever="minilm-l6:tiny", examples=2, shots=1, steps=1, batch_size=1, prompt_length=2,
    rate_factors=(1.0,), validation=2, test=2, beams=2, beam_problems=1, seeds=(0, 1))

INSTRUCTION = "Generate Python code.\n"
LENGTH = 20  # of a row without anything before it: the tokens of the longest problem
ZERO, BASELINE, NEAREST = "zero-shot", "few-shot, random", "few-shot, nearest"
NEAREST_OF_ALL = "few-shot, nearest of all"
METHOD = "LoRA"
SEARCHED = (METHOD, "full")  # arms whose first model searches with beams, beside the pretrained one


class Way(NamedTuple):
  """One way of tuning."""

  transform: ParamTransform
  rate: float  # the paper's
  adapter: Adapter | None = None


def ways(config: Config, model: Pretrained) -> dict[str, Way]:
  """The tuned arms by name."""
  words = text_prompt(model.params["embed"]["tokens"]["embedding"], model.tokenizer.encode(INSTRUCTION).ids)
  projections = "**/attention/{query,key,value}/kernel"
  return {
      "full": Way(full(), 5e-5),
      METHOD: Way(lora(projections, rank=16, alpha=32.0), 3e-4),
      "(IA)^3": Way(ia3(projections, "**/mlp/{gate,up,down}/kernel"), 3e-3),
      "soft prompt": Way(
          train("edits/**"), 3e-3, soft_prompt(config.prompt_length, model.config.dim, init=words)),
  }


def adafactor(rate: Any, steps: int) -> optax.GradientTransformation:
  """Adafactor as the paper's trainer sets it up: the given rates, gradients clipped, no momentum."""
  factor = warmed_up(steps)
  return optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adafactor(lambda t: rate * factor(t), multiply_by_parameter_scale=False))


def shown(problem: task.Problem) -> str:
  """A problem as text, up to its line."""
  return f"# {problem.intent}\n"


def solved(problems: Sequence[task.Problem]) -> str:
  """Problems with their lines, one after the other: the demonstrations of a prompt."""
  return "".join(f"{shown(p)}{p.code}\n" for p in problems)


def rows(model: Pretrained, problems: Sequence[task.Problem], before: Sequence[str] | None = None) -> Rows:
  """Problems as rows to complete, each after its text `before`; the newline that ends the line is part of it."""
  before = [""] * len(problems) if before is None else before
  records = [{"prompt": b + shown(p), "completion": p.code + "\n"} for b, p in zip(before, problems, strict=True)]
  longest = max(len(model.tokenizer.encode(r["prompt"] + r["completion"]).ids) for r in records)
  length = LENGTH if longest <= LENGTH else -(-longest // 8) * 8  # few lengths: each is compiled for
  tokens = tokenize_completions(records, model.tokenizer, lengths=length, eos_id=None)
  return Rows(tokens["ids"], tokens["mask"], tokens["loss_mask"])


class Prompter:
  """Scores problems after demonstrations, by a model that stays as it is."""

  def __init__(self, model: Pretrained, retriever: Pretrained, *, score: Scorer, score_prefixed: Scorer):
    self._model, self._score, self._score_prefixed = model, score, score_prefixed
    embed = jax.jit(lambda ids, mask: encoder.embed(retriever.params, retriever.config, ids, mask))
    intents = [p.intent for p in task.problems()]
    vectors = embed_texts(embed, intents, retriever.tokenizer, tokens_per_batch=1024)
    self._vectors = dict(zip(intents, vectors, strict=True))

  def plain(self, problems: Sequence[task.Problem]) -> dict[str, float]:
    """After the instruction alone."""
    return self._score(self._model.params, rows(self._model, problems, [INSTRUCTION] * len(problems)))._asdict()

  def fixed(self, problems: Sequence[task.Problem], demonstrations: Sequence[task.Problem]) -> dict[str, float]:
    """After the same demonstrations: read once, as a prefix of keys and values, which is the same to the decoder."""
    ids = np.array(self._model.tokenizer.encode(INSTRUCTION + solved(demonstrations)).ids)
    read = prefix_from_tokens(decoder.hidden_states, self._model.params, self._model.config, ids)
    return self._score_prefixed({**self._model.params, "edits": read}, rows(self._model, problems))._asdict()

  def nearest(self, problems: Sequence[task.Problem], bank: Sequence[task.Problem], n: int) -> dict[str, float]:
    """After the n nearest of a bank by the cosine of the descriptions, the nearest last."""
    vectors = lambda problems: np.stack([self._vectors[p.intent] for p in problems])
    chosen = retrieve_demonstrations(vectors(problems), vectors(bank), n)
    before = [INSTRUCTION + solved([bank[i] for i in reversed(row)]) for row in chosen]
    return self._score(self._model.params, rows(self._model, problems, before))._asdict()


def search(config: Config, model: Pretrained, params: Any, problems: Sequence[task.Problem], before: str) -> Any:
  """EM@1 and EM@k of the beams, and the share of first lines that do what they should."""
  asked = rows(model, problems, [before] * len(problems))
  prompt = asked.mask - asked.scored
  newline = model.tokenizer.encode("\n").ids
  found = beam_search(
      stepwise_decoder(params, model.config), asked.ids * prompt, mask=prompt, beams=config.beams, max_new_tokens=20,
      stop=newline)
  lines = [[model.tokenizer.decode(beam[real].tolist()) for beam, real in zip(*row, strict=True)]
           for row in zip(np.asarray(found.tokens), np.asarray(found.mask), strict=True)]
  references = [p.code for p in problems]
  return {
      **{f"em@{k}": float(exact_match_at_k(lines, references, k).mean()) for k in (1, config.beams)},
      "execution": float(np.mean(task.right([beams[0] for beams in lines], problems))),
  }


def run(config: Config) -> Result:
  """Scores prompts and tuned models on the same examples of each seed."""
  ledger = Ledger("peft-for-code", config)
  model = load(config.model)
  parts = task.splits(validation=config.validation, test=config.test)
  data = {split: rows(model, parts[split]) for split in ("validation", "test")}
  few = parts["test"][:: max(1, config.test // config.beam_problems)][: config.beam_problems]
  batch_size = min(12, config.test)

  def examples(seed: int) -> tuple[list[task.Problem], list[Rows]]:
    rng = np.random.default_rng(seed)
    drawn = task.draw(parts["train"], config.examples, rng)
    order = np.concatenate([rng.permutation(len(drawn)) for _ in range(config.steps)])  # passes over the examples
    picks = order[: config.steps * config.batch_size].reshape(config.steps, config.batch_size)
    tokens = rows(model, drawn)
    return drawn, [tokens[pick] for pick in picks]

  plain = Scorer(model, batch_size=batch_size)
  # A prefix's edits do not depend on its length: one scorer serves all.
  prefixed = Scorer(model, batch_size=batch_size, adapter=prefix(model.config, 1))
  prompter = Prompter(model, load(config.retriever), score=plain, score_prefixed=prefixed)
  scores: dict[str, list[dict[str, Any]]] = {ZERO: [ledger(ZERO, lambda: prompter.plain(parts["test"]))]}
  scores[NEAREST_OF_ALL] = [ledger(
      NEAREST_OF_ALL, lambda: prompter.nearest(parts["test"], parts["train"], config.shots))]
  scores[BASELINE] = [ledger(f"{BASELINE}, seed {seed}", lambda: prompter.fixed(
      parts["test"], examples(seed)[0][: config.shots])) for seed in config.seeds]
  scores[NEAREST] = [ledger(f"{NEAREST}, seed {seed}", lambda: prompter.nearest(
      parts["test"], examples(seed)[0], config.shots)) for seed in config.seeds]
  for arm in (ZERO, NEAREST_OF_ALL):
    scores[arm] *= len(config.seeds)
  beams = {ZERO: ledger("beams", lambda: search(config, model, model.params, few, INSTRUCTION))}

  rates, tuning, costs = {}, {}, {}
  for arm, way in ways(config, model).items():
    loss = objective(model, adapter=way.adapter)
    tuner = Tuner(loss, way.transform, steps=config.steps, optimizer=adafactor)
    score = plain if way.adapter is None else Scorer(model, batch_size=batch_size, adapter=way.adapter)

    def start(seed: int) -> Any:
      return model.params if way.adapter is None else {**model.params, "edits": way.adapter.init(jax.random.key(seed))}

    def learn(rate: float, seed: int, split: str) -> dict[str, Any]:
      tuned = tuner(start(seed), examples(seed)[1], rate=rate, seed=seed)
      found = score(tuned, data[split])._asdict()
      if arm in SEARCHED and seed == config.seeds[0]:
        found["beams"] = search(config, model, tuned, few, "")
      return found

    rates[arm], tuning[arm], scores[arm] = sweep(
        ledger, arm, [way.rate * factor for factor in config.rate_factors], learn,
        tuning_seeds=(config.tuning_seed,), seeds=config.seeds, score=lambda run: run["nll"], higher_is_better=False)
    if arm in SEARCHED:
      beams[arm] = scores[arm][0]["beams"]
    batch = examples(config.seeds[0])[1][0]
    costs[arm] = training_cost(
        Recipe(loss, way.transform, adafactor(1e-3, config.steps)), start(0), batch, tokens=batch.ids.size)

  values = {name: {arm: [float(s[name]) for s in runs] for arm, runs in scores.items()} for name in ("exact", "nll")}
  arms = {arm: Arm(arm, tuple(matches), {"learning_rate": rates[arm]} if arm in rates else {})
          for arm, matches in values["exact"].items()}
  supports, conclusion = conclude(values, beams, rates, tuning, config.steps)
  ledger.clear()
  return Result(
      slug="peft-for-code", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"exact match of one line of Python, {config.examples} examples, test problems", higher_is_better=True,
      baseline=arms[BASELINE], method=arms[METHOD],
      arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, METHOD)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "nll": values["nll"], "validation_nll": tuning, "beams_of_the_first_seed": beams,
          "problems": {split: len(part) for split, part in parts.items()},
          "costs": {arm: dataclasses.asdict(cost) for arm, cost in costs.items()},
          "lora_against": {
              name: {arm: paired_test(by_arm[METHOD], by_arm[arm]) for arm in by_arm if arm != METHOD}
              for name, by_arm in values.items()},
      })


def conclude(
    values: dict[str, dict[str, list[float]]], beams: dict[str, Any], rates: dict[str, float],
    tuning: dict[str, dict[str, float]], steps: int,
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": LoRA's exact match is higher than that of random and of nearest demonstrations from the same examples (each
  p < 0.05). "partly": higher than that of random ones, or its lines are likelier than with either (p < 0.05). Else
  "false".
  """
  test = lambda name, arm: paired_test(values[name][METHOD], values[name][arm])
  exact = [test("exact", arm).sign > 0 for arm in (BASELINE, NEAREST)]
  likely = all(test("nll", arm).sign < 0 for arm in (BASELINE, NEAREST))
  means = {arm: (np.mean(matches), np.mean(values["nll"][arm])) for arm, matches in values["exact"].items()}
  order = sorted(means, key=lambda arm: -means[arm][0])
  reached = ", ".join(f"{arm} {means[arm][0]:.3f} ({means[arm][1]:.2f})" for arm in order)
  differs = "; ".join(f"{arm} {test('exact', arm)}" for arm in (BASELINE, NEAREST, "full"))
  searched = "; ".join(
      f"{arm} {', '.join(f'{name} {value:.2f}' for name, value in found.items())}" for arm, found in beams.items())
  sentence = (
      f"Exact match (nats per token): {reached}. LoRA against {differs}. With beams, on a few problems of the first "
      f"seed: {searched}.")
  if edge := [arm for arm, tried in tuning.items() if len(tried) > 1 and f"{rates[arm]:g}" == list(tried)[-1]]:
    sentence += (
        f" The highest rate tried was best for {', '.join(edge)}: {steps} steps are few, so that tuning is likely "
        "better than it looks here.")
  if all(exact):
    return "true", sentence
  return ("partly" if exact[0] or likely else "false"), sentence


EXPERIMENT = Experiment(
    slug="peft-for-code",
    title="Exploring Parameter-Efficient Fine-Tuning Techniques for Code Generation with Large Language Models",
    arxiv="2308.10462", areas=("transforms", "adapters", "decoding", "evaluation"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
