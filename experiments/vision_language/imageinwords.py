"""ImageInWords: are few descriptions that people refined in turn worth more than many short captions?

    jaxft run imageinwords            some minutes on one core, and ten for the captioner and its judge
    jaxft run imageinwords --smoke    seconds

The captioner of `tasks/captions/captioner.py` meets Fluent's emoji and is tuned by maximum likelihood on 400 pictures
with their names, or on as many words of descriptions, which are fewer pictures. A description starts as the caption
that the captioner itself writes. Of three annotators, each of whom sees the text that the one before left, the first
takes out what is wrong, the second puts the name first, and the third adds what else is true, up to eight words;
functions that read the emoji's name and tags stand in for people. A third arm has the text after the second annotator.

Side by side with the caption before tuning, a caption is rated by four of the source's five criteria, each by the sign
of a difference: comprehensiveness, the share of the name's and tags' words that are said; hallucination, the share of
what is said that is among them; specificity, how many other pictures the home-made dual encoder finds nearer; and
whether the first word is true. Nobody rates how human it is. What is true are all words of name and tags, also those
that the captioner cannot write; in a first try they were those that it can, of which names leave out less than half.
A seed draws pictures, batches and what is dropped.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.tasks.captions.captioner import TINY, Params, Recipe
from experiments.tasks.captions.tuning import REFERENCES, World, at_random, pictures
from experiments.tasks.captions.words import Reference, to_ids, within
from experiments.tasks.emoji_dual_encoder import embed
from jaxft.data import Description, refine
from jaxft.evaluation import caption_faithfulness, net_preference
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  pictures: int = 400  # with short captions; of descriptions as many as have the same number of words
  steps: int = 60
  batch_size: int = 60
  rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(recipe=TINY, pictures=16, steps=4, batch_size=4, rates=(0.1, 0.3), seeds=(0, 1), tuning_seeds=(100,))

START, NAMES, DESCRIBED = "captions before", "the names themselves", "the descriptions themselves"
SHORT, SECOND, METHOD = "names", "after two annotators", "descriptions"


def annotators(true: Reference, longest: int) -> dict[str, Callable[[Description], str]]:
  """Three who know the picture, in their order."""
  known, name = {*true.name, *true.tags}, list(true.name)

  def corrects(record: Description) -> str:
    return " ".join(word for word in dict.fromkeys(record.text.split()) if word in known)

  def names(record: Description) -> str:
    return " ".join([*name, *(word for word in record.text.split() if word not in name)][:longest])

  def extends(record: Description) -> str:
    said = record.text.split()
    return " ".join([*said, *(word for word in true.tags if word not in said)][:longest])

  return {"corrects": corrects, "names": names, "extends": extends}


class Tuned:
  """The captioner before and after tuning, and what its captions are worth beside those before."""

  def __init__(self, config: Config):
    self.config, self.world = config, World(config.recipe)
    self.pictures, said = self._known("train")
    records = self.records("train")
    texts = {SHORT: [" ".join(one.name) for one in said], SECOND: [record.history[2].text for record in records],
             METHOD: [record.text for record in records]}
    longest = config.recipe.longest
    self.words = {arm: np.array([len(text.split()) for text in own]) for arm, own in texts.items()}
    self.ids = {arm: to_ids([text.split() for text in own], self.world.made.words, longest=longest)[:, None]
                for arm, own in texts.items()}
    self._held, self._before = cache(self._known), cache(lambda split: self._rated(self._captions(split), split))

  def _known(self, split: str) -> tuple[Float[np.ndarray, "n width"], list[Reference]]:
    """Pictures whose names have a known word, with what is true of them in known words."""
    x, said = pictures(split, self.config.recipe)
    known = within(said, self.world.made.words)
    kept = [at for at, one in enumerate(known) if one.name]
    return x[kept], [known[at] for at in kept]

  def _truth(self, split: str) -> list[set[str]]:
    """All words of the name and the tags of these pictures, known or not."""
    _, said = pictures(split, self.config.recipe)
    known = within(said, self.world.made.words)
    return [{*one.name, *one.tags} for one, own in zip(said, known, strict=True) if own.name]

  def _captions(self, split: str) -> list[str]:
    return self.world.captions(self.world.made.params, self._known(split)[0])

  def records(self, split: str) -> list[Description]:
    """A description of each picture, with its history."""
    _, said = self._known(split)
    longest = self.config.recipe.longest
    return [refine(Description(str(at), text), annotators(true, longest))
            for at, (text, true) in enumerate(zip(self._captions(split), said, strict=True))]

  def rows(self, arm: str, seed: int) -> Int[np.ndarray, " own"]:
    """The pictures that an arm sees: of all arms as many words, but for what one picture more would have."""
    c = self.config
    order = np.random.default_rng(seed).permutation(len(self.pictures))
    most = self.words[SHORT][order[: c.pictures]].sum()
    return order[: max(int(np.searchsorted(np.cumsum(self.words[arm][order]), most, side="right")), c.batch_size)]

  def before(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """Captions as they are."""
    return self._scores(self._captions(split), split)

  def themselves(self, what: str, rate: None, seed: int, split: str) -> dict[str, Any]:
    """What is learned from, of held-out pictures, in place of captions."""
    _, said = self._held(split)
    texts = [" ".join(one.name) for one in said] if what == NAMES else [one.text for one in self.records(split)]
    return self._scores(texts, split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tuned by one arm."""
    c, own = self.config, self.rows(arm, seed)
    rows = own[at_random(np.random.default_rng(seed), len(own), steps=c.steps, batch=c.batch_size)].astype(np.int32)
    params: Params
    params, _ = self.world.tune(
        self.world.made.params, self.pictures, self.ids[arm], rows, jax.random.key(seed), rate, by=REFERENCES)
    return self._scores(self.world.captions(params, self._held(split)[0]), split)

  def _rated(self, said: list[str], split: str) -> dict[str, np.ndarray]:
    """What the four criteria compare, higher being better."""
    x, _ = self._held(split)
    words, all_true = [set(text.split()) for text in said], self._truth(split)
    cosines = self.world.texts(said) @ np.asarray(embed(self.world.judge, "vision", x)).T
    return {
        "facts": np.array([len(a & b) / len(b) for a, b in zip(words, all_true, strict=True)]),
        "true": np.array(caption_faithfulness(said, [" ".join(sorted(one)) for one in all_true])),
        "specific": -(cosines > np.diagonal(cosines)[:, None]).sum(1).astype(np.float64),
        "start": np.array([float(text.split()[0] in own) if text else 0.0
                           for text, own in zip(said, all_true, strict=True)])}

  def _scores(self, said: list[str], split: str) -> dict[str, Any]:
    own, before = self._rated(said, split), self._before(split)
    ratings = np.stack([np.sign(own[name] - before[name]) for name in own]).astype(np.int32)
    return {"preferred": net_preference(ratings), "facts": own["facts"], "true": own["true"],
            "first": own["specific"] == 0, "words": [float(len(text.split())) for text in said]}


def arms(config: Config) -> dict[str, Arm]:
  """Captions before tuning, what is learned from, and three tunings."""
  own = Tuned(config)
  return {START: Arm(own.before), **{what: Arm(partial(own.themselves, what)) for what in (NAMES, DESCRIBED)},
          **{arm: Arm(partial(own.tuned, arm), config.rates) for arm in (SHORT, SECOND, METHOD)}}


STUDY = Study(
    slug="imageinwords", arxiv="2405.02793",
    title="ImageInWords: Unlocking Hyper-Detailed Image Descriptions", question="vision and language",
    use_when="there is money for so many words about images, and captions leave most of them out",
    setting="a home-made captioner (EfficientNet-Lite0, two layers) of emoji in a new style, tuned on 400 names or as "
            "many words of refined descriptions, 60 steps of 60",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("preferred", "net preference over the caption before tuning, the mean of four criteria"),
        Score("facts", "share of the words of name and tags that are said"),
        Score("true", "share of a caption's words that the name or a tag has"),
        Score("first", "share of pictures that the judge finds first by their captions among all"),
        Score("words", "words of a caption")),
    choose_by="preferred", baseline=SHORT, method=METHOD, start=START, kept="true",
    premises=(
        Premise("names leave out most of what is true", lambda s: 1 - s[NAMES].facts, at_least=0.5),
        Premise("descriptions are preferred to the captions before", lambda s: s[DESCRIBED].preferred, at_least=0.2),
        Premise("and to names", lambda s: s[DESCRIBED].preferred - s[NAMES].preferred, at_least=0.05)),
    claims=(
        Claim("descriptions teach captions that are preferred by more than names do", higher("preferred"),
              smallest=0.02),
        Claim("that say more of what is true", higher("facts"), smallest=0.02),
        Claim("by which more pictures are found", higher("first"), smallest=0.01),
        Claim("by more than texts of two annotators alone do", higher("preferred", METHOD, SECOND), smallest=0.02)),
    plot=Bars("preferred"))
