"""DiscriTune: does a captioner that is rewarded when a retriever finds its picture write captions that tell more?

    jaxft run discriminative-captioning            some minutes on one core, and ten for the captioner and its judge
    jaxft run discriminative-captioning --smoke    seconds

The captioner of `tasks/captions/captioner.py` meets Fluent's emoji, a style that it has not seen. It is tuned on 400 of
740 pictures, by REINFORCE and the log-probability with which a frozen retriever finds a picture by its caption among a
batch, which needs no reference; or by more maximum likelihood on the pictures' names and tags, for as many steps. The
retriever that rewards reads captions as sets of words; the one that judges is the home-made dual encoder, whose MiniLM
reads them whole, among 99 other pictures of the style, and among drawings of Open Clipart, of which none is tuned on.

Rewards are whitened over the batch, where the source has a running mean and a rate of 1e-7. Captions are sampled; the
source's released runs reward the likeliest ones, and that is an arm. A seed draws the pictures, their order and the
samples. Two thirds of the pictures on either side show emoji whose names, in other styles, were in the pretraining.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.tasks.captions.captioner import TINY, Recipe, ids_of, seen
from experiments.tasks.captions.tuning import GREEDY, REFERENCES, SAMPLED, World, at_random, pictures
from experiments.tasks.captions.words import references, to_ids
from jaxft.evaluation import caption_faithfulness, random_distractor_recall, token_f1
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, not_lower

OTHER = "clipart"


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  pictures: int = 400
  steps: int = 100
  batch_size: int = 60
  distractors: int = 99
  rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    recipe=TINY, pictures=8, steps=4, batch_size=4, distractors=5, rates=(0.1, 0.3), seeds=(0, 1),
    tuning_seeds=(100,))

START, NAMES = "the captioner before", "the names themselves"
PLAIN, LIKELIEST, METHOD = "more likelihood", "DiscriTune, likeliest captions", "DiscriTune"
BY = {PLAIN: REFERENCES, LIKELIEST: GREEDY, METHOD: SAMPLED}


class Tuned:
  """The captioner before and after tuning, and what its captions are worth."""

  def __init__(self, config: Config):
    self.config, self.world = config, World(config.recipe)
    self.pictures, self.references = pictures("train", config.recipe)
    self.ids = ids_of(config.recipe, self.references, self.world.made.words)
    self._held = cache(lambda split: pictures(split, config.recipe))

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """As it is."""
    x, _ = self._held(split)
    params = self.world.made.params
    return self._scores(self.world.captions(params, x), self.world.captions(params, self.drawings(split)), split)

  def names(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """What people call the pictures, in place of captions."""
    _, said = self._held(split)
    titles = references(OTHER, split, limit=self.config.recipe.towers.vision.limit)
    return self._scores(*([" ".join(one.name) for one in own] for own in (said, titles)), split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tuned by one arm."""
    c, rng = self.config, np.random.default_rng(seed)
    own = rng.permutation(len(self.pictures))[: c.pictures]
    rows = own[at_random(rng, len(own), steps=c.steps, batch=c.batch_size)]
    params, _ = self.world.tune(
        self.world.made.params, self.pictures, self.ids, rows, jax.random.key(seed), rate, by=BY[arm])
    x, _ = self._held(split)
    return self._scores(self.world.captions(params, x), self.world.captions(params, self.drawings(split)), split)

  def drawings(self, split: str) -> Float[np.ndarray, "n width"]:
    """Pictures of another domain."""
    check_open(split)
    return seen(OTHER, split, vision=self.config.recipe.towers.vision)

  def _scores(self, said: list[str], of_drawings: list[str], split: str) -> dict[str, Any]:
    x, true = self._held(split)
    names = [" ".join(one.name) for one in true]
    found = partial(self.world.found, distractors=self.config.distractors)
    ids = to_ids([text.split() for text in said], self.world.made.words, longest=self.config.recipe.longest)
    own = random_distractor_recall(
        jax.random.key(0), self.world.finder.texts(ids), self.world.finder.pictures(x),
        distractors=self.config.distractors)
    return {
        "first": found(said, x), "own": np.asarray(own, np.float64),
        "elsewhere": found(of_drawings, self.drawings(split)),
        "true": caption_faithfulness(said, [" ".join((*one.name, *one.tags)) for one in true]),
        "f1": token_f1(said, names), "words": [float(len(one.split())) for one in said]}


def arms(config: Config) -> dict[str, Arm]:
  """Captions before tuning, names, and three ways to tune."""
  own = Tuned(config)
  return {START: Arm(own.start), NAMES: Arm(own.names),
          **{arm: Arm(partial(own.tuned, arm), config.rates) for arm in BY}}


STUDY = Study(
    slug="discriminative-captioning", arxiv="2304.01662",
    title="Cross-Domain Image Captioning with Discriminative Finetuning", question="vision and language",
    use_when="captions are to tell pictures apart, in a style for which there are no references",
    setting="a home-made captioner (EfficientNet-Lite0, two layers) of emoji in a new style, tuned on 400 pictures, "
            "100 steps of 60; judged by another retriever than the rewarding one",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("first", "share of pictures that the judge finds by their captions among 99 others"),
        Score("own", "the same by the retriever that rewards"),
        Score("elsewhere", "the same of drawings, another domain"),
        Score("true", "share of a caption's words that the name or a tag has"),
        Score("f1", "F1 of the words of captions and names"),
        Score("words", "words of a caption")),
    choose_by="first", baseline=PLAIN, method=METHOD, start=START, kept="true",
    premises=(
        Premise("the judge finds pictures by their names more often than by the captions before tuning",
                lambda s: s[NAMES].first - s[START].first, at_least=0.05),
        Premise("and by these more often than by chance", lambda s: s[START].first, at_least=0.05)),
    claims=(
        Claim("more pictures are found by their captions than after more likelihood", higher("first"), smallest=0.02),
        Claim("also in another domain", higher("elsewhere"), smallest=0.01),
        Claim("a caption's words are no less often true", not_lower("true"), smallest=0.02),
        Claim("sampling finds more than rewarding the likeliest captions", higher("first", METHOD, LIKELIEST),
              smallest=0.01)),
    plot=Bars("first"))
