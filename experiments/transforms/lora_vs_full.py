"""LoRA against full fine-tuning: at equal success, does LoRA leave intruder dimensions, and is forgetting in them?

    jaxft run lora-vs-full            ten minutes on one core
    jaxft run lora-vs-full --smoke    seconds

An MLP with two hidden layers of 256 reads 8x8 images of digits in three views and is tuned on inverted ones, by both
hidden matrices or by LoRA on them with rank 1, 4, 16 or 64 and alpha = 2r; the head trains in all arms, as in the
source. A seed draws the model, the factors and the batches.

An intruder is one of the ten leading singular vectors of a tuned matrix, on the side of the outputs, whose cosine with
every singular vector of the pretrained one is below 0.3; vectors of 256 numbers reach 0.2 by chance. Control: the share
of the leading vectors that lies outside the span of the pretrained matrix's thirty leading ones, as vectors of
near-equal singular values may turn among themselves. At last the singular values of all vectors below the source's 0.5
are halved, in every arm: what that gives in the old views and costs in the new one.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.tasks.digits_views import Images, Params, finetune, load_images, logits, pretrain, seen
from jaxft.analysis import effective_rank, singular_overlap
from jaxft.merging import reduce_intruders
from jaxft.studies.study import Arm, Claim, Contrast, Front, Grid, Premise, Score, Study, higher, lower
from jaxft.transforms import ParamTransform, chain, lora, train
from jaxft.tree import count


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = (256, 256)
  views: tuple[str, ...] = ("upright", "turned", "mirrored")
  target: str = "inverted"
  base_steps: int = 1500
  steps: int = 400
  full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  lora_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  k: int = 10
  near: int = 30  # leading vectors of the base whose span is the control
  eps: float = 0.3
  halved_below: float = 0.5
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102, 103)


SMOKE = Config(
    widths=(32, 32), base_steps=4, steps=3, full_rates=(1e-2, 3e-2), lora_rates=(1e-1, 3e-1), k=4, near=8,
    seeds=(0, 1), tuning_seeds=(100,))

HIDDEN = "hidden_*/kernel"
TRANSFORMS: dict[str, ParamTransform] = {"full": train([HIDDEN, "head/**"])} | {
    f"LoRA, rank {rank}": chain(train("head/**"), lora(HIDDEN, rank=rank, alpha=2.0 * rank)) for rank in (1, 4, 16, 64)}


def spectrum(config: Config, base: Float[Array, "m n"], tuned: Float[Array, "m n"]) -> dict[str, Array]:
  """Of one matrix."""
  vectors = lambda w: jnp.linalg.svd(w, full_matrices=False)[2]
  inside = jnp.sum((vectors(tuned)[: config.k] @ vectors(base)[: config.near].T) ** 2, axis=-1)
  return {
      "intruders": jnp.sum(singular_overlap(base, tuned).cosines[: config.k] < config.eps),
      "outside": jnp.mean(1 - inside), "effective_rank": effective_rank(tuned - base),
      "change": jnp.linalg.norm(tuned - base) / jnp.linalg.norm(base)}


class World:
  """The base of each seed, its tuning, and what is measured of both."""

  def __init__(self, config: Config):
    self.config, images = config, load_images("train")
    old = seen(images, *config.views)
    self._new = seen(images, config.target)
    self._pretrain = jax.jit(lambda key: pretrain(key, old, widths=config.widths, steps=config.base_steps))
    self._tune = {arm: jax.jit(partial(self._finetune, transform)) for arm, transform in TRANSFORMS.items()}
    self._spectrum = jax.jit(partial(spectrum, config))
    self._right = jax.jit(lambda params, images: jnp.argmax(logits(params, images.pixels), axis=-1) == images.digits)
    self._held = cache(lambda split, *views: seen(load_images(split), *views))
    self.base = cache(lambda seed: self._pretrain(jax.random.key(seed)))

  def _finetune(self, transform: ParamTransform, key: Array, params: Params, images: Images, rate: Any) -> Params:
    return finetune(key, params, images, transform=transform, steps=self.config.steps, rate=rate)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tunes, looks at the spectra, and halves what looks like an intruder."""
    base, config = self.base(seed), self.config
    tuned = self._tune[arm](jax.random.fold_in(jax.random.key(seed), 1), base, self._new, rate)
    matrices = [self._spectrum(base[name]["kernel"], tuned[name]["kernel"]) for name in base if name != "head"]
    halved = reduce_intruders(base, tuned, k=config.k, eps=config.halved_below, factor=0.5, select=HIDDEN)
    of_halved = {f"{name}_halved": right for name, right in self.right(halved, split).items()}
    return self.right(tuned, split) | of_halved | {
        name: float(np.mean([m[name] for m in matrices])) for name in matrices[0]}

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """The base, whose matrices are their own."""
    right = self.right(self.base(seed), split)
    return right | {f"{name}_halved": r for name, r in right.items()} | {
        "intruders": 0.0, "outside": 0.0, "effective_rank": 0.0, "change": 0.0}

  def right(self, params: Params, split: str) -> dict[str, Array]:
    return {"target": self._right(params, self._held(split, self.config.target)),
            "old": self._right(params, self._held(split, *self.config.views))}

  def trained(self, arm: str) -> dict[str, float]:
    return {"trained numbers": count(TRANSFORMS[arm].split(jax.random.key(0), self.base(self.config.seeds[0]))[1])}


def arms(config: Config) -> dict[str, Arm]:
  """The base, full tuning, and LoRA of each rank."""
  world = World(config)
  rates = lambda arm: Grid(config.full_rates if arm == "full" else config.lora_rates)
  return {"base": Arm(world.start)} | {
      arm: Arm(partial(world.run, arm), rates(arm), partial(world.trained, arm)) for arm in TRANSFORMS}


METHOD, RANK_16 = "LoRA, rank 4", "LoRA, rank 16"
STUDY = Study(
    slug="lora-vs-full", title="LoRA vs Full Fine-tuning: An Illusion of Equivalence", arxiv="2410.21228",
    question="keep old skills", use_when="an adapter has learned its task as well as full tuning would have",
    setting="an MLP that reads digits in three views, tuned on inverted ones by its two hidden matrices",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("target", "accuracy on inverted images"),
        Score("old", "accuracy in the three old views"),
        Score("target_halved", "target after intruders' singular values are halved"),
        Score("old_halved", "old after that"),
        Score("intruders", "of ten leading singular vectors, per matrix, below 0.3"),
        Score("outside", "share of the leading vectors outside the base's thirty"),
        Score("effective_rank", "of the update, per matrix"),
        Score("change", "norm of the update over that of the matrix")),
    choose_by="target", baseline="full", method=METHOD, start="base", best="full", kept="old",
    premises=(
        Premise("full tuning learns the new view", lambda s: s["full"].target - s["base"].target, at_least=0.2),
        Premise("LoRA learns it as well, but for", lambda s: s[METHOD].target - s["full"].target, at_least=-0.02),
        Premise("the matrices change", lambda s: min(s["full"].change, s[METHOD].change), at_least=0.2),
        Premise("full tuning forgets the old views", lambda s: s["base"].old - s["full"].old, at_least=0.1)),
    claims=(
        Claim("LoRA leaves more intruders a matrix than full tuning", higher("intruders"), smallest=0.2),
        Claim("its update has less than half the effective rank, at rank 16 too", Contrast(
            lambda s, study: s["full"].effective_rank / 2 - s[RANK_16].effective_rank, "higher"), smallest=0.0),
        Claim("halving LoRA's intruders gives back accuracy in the old views", Contrast(
            lambda s, study: s[METHOD].old_halved - s[METHOD].old, "higher"), smallest=0.02),
        Claim("LoRA keeps less of the old views than full tuning", lower("old"), smallest=0.02)),
    plot=Front("old", "target"))
