"""R-AMT: does gradient dropout by agreement keep more of what a model knew while masks teach it a new domain?

    jaxft run regularized-mask-tuning           about two minutes on two cores
    jaxft run regularized-mask-tuning --smoke    seconds

An MLP is pretrained on upright digits and adapted to mirrored ones with a few images of each digit, by deleting weights
of its hidden layers: a score for each, thresholded straight through. The regularizer drops coordinates of the task's
gradient at random where a second gradient, of staying with the pretrained predictions, objects; lambda is the share of
a dropped coordinate that is lost. Batches are small and images shift by up to a pixel, so that signs of gradients
change from step to step and few weights go. Arms: the model as it is, full fine-tuning, masks with lambda 0, 0.3 and 1.

A smaller learning rate keeps more of the old domain as well, at the new one's cost, so that arms are compared at equal
success: for each arm, number of shots and seed, of the learning rates whose validation accuracy on mirrored digits is
at least 95% of the best that lambda 0 reaches in that seed, the one that keeps most accuracy on upright validation
images; where none does, the one closest to it. Both accuracies of that rate on test images are the result. As the card
of the system measured it, the details have also the rates that are best on mirrored digits, and the fronts of all.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tasks.digits_views import (
  Gradient,
  Images,
  Params,
  accuracy,
  few_shot,
  fit,
  load_images,
  logits,
  pretrain,
  seen,
)
from jaxft.evaluation import PairedTest, paired_test
from jaxft.leaves import materialize
from jaxft.losses import sum_of_norms
from jaxft.optimizers import agreement_dropout
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.result import Arm, Result
from jaxft.transforms import ParamTransform, binary_mask, full, masked_fraction


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (256, 256)
  base_steps: int = 500
  steps: int = 200
  batch_size: int = 16
  shots: tuple[int, ...] = (16, 4)
  norm_weight: float = 1e-4
  mask_rates: tuple[float, ...] = (5e-5, 8e-5, 1.3e-4, 2e-4, 3.2e-4)
  full_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
  matched: float = 0.95
  seeds: tuple[int, ...] = tuple(range(6))


SMOKE = Config(widths=(16,), base_steps=5, steps=2, batch_size=4, mask_rates=(1e-3,), full_rates=(1e-3,), seeds=(0, 1))

FROZEN, FULL = "frozen", "full fine-tuning"
STRENGTHS = {"masks, lambda 0": 0.0, "masks, lambda 0.3": 0.3, "masks, lambda 1": 1.0}
PLAIN, WEAK, STRONG = STRENGTHS
FIELDS = ("target", "original", "validation target", "validation original", "deleted")


class Front(NamedTuple):
  """What an arm reaches at each of its learning rates, `[seeds, rates]`; accuracies on test and validation images."""

  target: Float[np.ndarray, "seeds rates"]
  original: Float[np.ndarray, "seeds rates"]
  validation_target: Float[np.ndarray, "seeds rates"]
  validation_original: Float[np.ndarray, "seeds rates"]
  deleted: Float[np.ndarray, "seeds rates"]  # the fraction of the scored weights

  def at(self, rates: np.ndarray) -> "Front":
    """At one rate for each seed: `[seeds]`."""
    return Front(*(x[np.arange(len(x)), rates] for x in self))

  def best(self) -> np.ndarray:
    """By seed, the rate with the highest accuracy on mirrored validation images."""
    return self.validation_target.argmax(axis=1)

  def matched(self, level: np.ndarray) -> np.ndarray:
    """By seed, of the rates that reach a level of it, the one that keeps most of the old domain."""
    reached = self.validation_target >= level[:, None]
    most = np.where(reached, self.validation_original, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), most, self.best())


def shifted(key: Array, images: Images) -> Images:
  """Each image moved by up to one pixel along both axes; a border that leaves comes in at the other side."""
  moves = jax.random.randint(key, (len(images.digits), 2), -1, 2)
  return images._replace(pixels=jax.vmap(lambda x, by: jnp.roll(x, by, axis=(0, 1)))(images.pixels, moves))


def cross_entropy(params: Params, batch: Images) -> Array:
  """Mean over the batch."""
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, batch.pixels), batch.digits))


def full_gradient(join: Callable[[Any], Params], trainable: Any, batch: Images, key: Array) -> Any:
  """Of the cross-entropy on shifted images."""
  batch = shifted(key, batch)
  return jax.grad(lambda t: cross_entropy(join(t), batch))(trainable)


def gated_gradient(base: Params, strength: float, norm_weight: float) -> Gradient:
  """Of the cross-entropy and the scores' norms, gated by that of the divergence from the base model's predictions."""

  def gradient(join: Callable[[Any], Params], scores: Any, batch: Images, key: Array) -> Any:
    of_shift, of_dropout = jax.random.split(key)
    batch = shifted(of_shift, batch)
    before = jax.nn.softmax(logits(base, batch.pixels))

    def losses(scores: Any) -> tuple[Array, Array]:
      z = logits(join(scores), batch.pixels)
      task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, batch.digits))
      return task + norm_weight * sum_of_norms(scores), jnp.mean(optax.softmax_cross_entropy(z, before))

    # One forward pass, pulled back twice.
    _, pull = jax.vjp(losses, scores)
    (task,), (knowledge,) = pull((jnp.ones(()), jnp.zeros(()))), pull((jnp.zeros(()), jnp.ones(())))
    return agreement_dropout(of_dropout, task, knowledge, strength=strength)

  return gradient


def adapt(
    key: Array, base: Params, rates: Float[Array, " rates"], images: Images, held_out: tuple[Images, ...], shots: int,
    strength: float | None, config: Config,
) -> Float[Array, "fields rates"]:
  """Tunes at each rate, by masks or (strength None) in full; the fields of `Front`."""
  of_shots, of_fit = jax.random.split(key)
  images = few_shot(of_shots, images, shots)
  masks = strength is not None
  transform: ParamTransform = binary_mask("hidden_*/kernel") if masks else full()
  gradient = gated_gradient(base, strength, config.norm_weight) if masks else full_gradient

  def one(rate: Array) -> Array:
    frozen, trained = fit(of_fit, base, images, steps=config.steps, rate=rate, batch_size=config.batch_size,
                          transform=transform, gradient=gradient)
    params = materialize(transform.join(frozen, trained))
    deleted = masked_fraction(trained) if masks else jnp.zeros(())
    return jnp.stack([accuracy(params, h) for h in held_out] + [deleted])

  return jax.vmap(one, out_axes=1)(rates)


def run(config: Config) -> Result:
  """Pretrains a model for each seed and adapts it by every arm, with every number of shots, at every rate."""
  train, validation, test = (load_images(split) for split in ("train", "validation", "test"))
  held_out = seen(test, "mirrored"), test, seen(validation, "mirrored"), validation
  keys = jax.vmap(jax.random.key)(jnp.array(config.seeds))
  base = jax.jit(jax.vmap(lambda key: pretrain(key, train, widths=config.widths, steps=config.base_steps)))(keys)
  before = np.array([jax.vmap(accuracy, (0, None))(base, h) for h in held_out])

  def front(shots: int, strength: float | None) -> Front:
    rates = config.full_rates if strength is None else config.mask_rates
    learn = partial(adapt, rates=jnp.array(rates), images=seen(train, "mirrored"), held_out=held_out, shots=shots,
                    strength=strength, config=config)
    # Seeds one after the other: all at once would not fit the cache.
    return Front(*np.moveaxis(jax.jit(lambda *inputs: jax.lax.map(lambda x: learn(*x), inputs))(keys, base), 0, 1))

  fronts = {n: {FULL: front(n, None)} | {arm: front(n, s) for arm, s in STRENGTHS.items()} for n in config.shots}
  matched: dict[int, dict[str, Front]] = {}
  for n, by_arm in fronts.items():
    level = config.matched * by_arm[PLAIN].validation_target.max(axis=1)
    matched[n] = {arm: f.at(f.matched(level)) for arm, f in by_arm.items()}
  best = {n: {arm: f.at(f.best()) for arm, f in by_arm.items()} for n, by_arm in fronts.items()}

  most, *others = config.shots
  named = {(n, arm): Arm(f"{arm}, {n} shots", tuple(f.original.tolist()), {"rates": rates_of(config, arm)})
           for n, by_arm in matched.items() for arm, f in by_arm.items()}
  baseline, method = named.pop((most, PLAIN)), named.pop((most, STRONG))
  frozen = Arm(FROZEN, tuple(before[1].tolist()))
  supports, conclusion = conclude(matched, best, most, float(before[0].mean()))
  mean = lambda table: {f"{n} shots": {arm: means(f) for arm, f in by_arm.items()} for n, by_arm in table.items()}
  return Result(
      slug="regularized-mask-tuning", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"accuracy kept on upright digits at equal accuracy on mirrored ones, {most} shots, test images",
      higher_is_better=True, baseline=baseline, method=method, arms=(frozen, *named.values()), seeds=config.seeds,
      command="", supports_paper=supports, conclusion=conclusion,
      details={
          "before": {"target": float(before[0].mean()), "original": float(before[1].mean())},
          "mean_at_equal_target": mean(matched), "mean_at_the_rate_best_for_the_target": mean(best),
          "fronts": {f"{n} shots": {arm: {"rates": rates_of(config, arm)} | means(f) for arm, f in by_arm.items()}
                     for n, by_arm in fronts.items()},
          "target_at_equal_target": {f"{n} shots": {arm: f.target.tolist() for arm, f in by_arm.items()}
                                     for n, by_arm in matched.items()},
          "against_lambda_0": {f"{n} shots": {arm: both(by_arm[arm], by_arm[PLAIN]) for arm in (WEAK, STRONG, FULL)}
                               for n, by_arm in matched.items()},
          "against_lambda_0_at_the_rate_best_for_the_target": {
              f"{n} shots": {arm: both(by_arm[arm], by_arm[PLAIN]) for arm in (WEAK, STRONG, FULL)}
              for n, by_arm in best.items()},
      })


def rates_of(config: Config, arm: str) -> list[float]:
  """The grid of an arm."""
  return list(config.full_rates if arm == FULL else config.mask_rates)


def means(front: Front) -> dict[str, Any]:
  """Over the seeds."""
  return {name: np.mean(x, axis=0).tolist() for name, x in zip(FIELDS, front, strict=True)}


def both(a: Front, b: Front) -> dict[str, PairedTest]:
  """Paired tests of both accuracies."""
  return {"target": paired_test(a.target, b.target), "original": paired_test(a.original, b.original)}


def conclude(
    matched: dict[int, dict[str, Front]], best: dict[int, dict[str, Front]], shots: int, frozen: float
) -> tuple[str, str]:
  """Whether gradient dropout keeps more at equal success, and the sentence that says so.

  "true": lambda 1 keeps more of the original domain than lambda 0 (p < 0.05) and its target accuracy is not lower
  (p < 0.05). "partly": it keeps more, at a target that is lower. Else "false".
  """
  tests = both(matched[shots][STRONG], matched[shots][PLAIN])
  open_ = both(best[shots][STRONG], best[shots][PLAIN])
  full_ = both(matched[shots][PLAIN], matched[shots][FULL])
  plain, strong = matched[shots][PLAIN], matched[shots][STRONG]
  sentence = (
      f"Masks alone take mirrored digits from {frozen:.3f} to {plain.target.mean():.3f} at {shots} shots by deleting "
      f"{plain.deleted.mean():.1%} of the weights, against full fine-tuning {full_['target']} on the target and "
      f"{full_['original']} on the original domain. Gradient dropout at lambda 1 deletes "
      f"{strong.deleted.mean():.1%} and changes the original domain by {tests['original']} and the target by "
      f"{tests['target']} at the matched rates; at the rates best for the target by {open_['original']} and "
      f"{open_['target']}.")
  if tests["original"].sign > 0:
    return ("partly" if tests["target"].sign < 0 else "true"), sentence
  return "false", sentence


EXPERIMENT = Experiment(
    slug="regularized-mask-tuning",
    title="Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models",
    arxiv="2307.15049", areas=("transforms", "training"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
