"""The options of `jaxft finetune` and `jaxft plan`, as dataclasses; importing them imports no JAX.

Groups are only for the help page: an option is given by its own name, `--rank 8`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxft import command_line
from jaxft.recipes.method_expression import EXAMPLE
from jaxft.recipes.methods import WORDS, names_by_kind, rates_by_method, selected_by_default
from jaxft.recipes.preference.losses import PREFERENCES, by_value
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.stores.store import as_path

_METHODS = f'What trains; {names_by_kind()} Several: "{EXAMPLE}", each with its options in brackets.'
_SELECT = (
    f"Path globs, or {', '.join(WORDS)}. freeze: what stays fixed; train: what trains; bitfit, norm_tuning: which "
    "biases or norms; ia3: matrices whose outputs are scaled; full, hft: not read; all others: matrices to adapt. "
    f"None given: {selected_by_default()}.")
_RATE = (
    f"Peak learning rate. None: the method's usual one, {rates_by_method()}; of preference losses a share of it, "
    f"{by_value('rate')}.")
_PAIRS = [name for name, loss in PREFERENCES.items() if loss.sides == "pair"]
_LOSS = (
    "In place of a task, or one of its losses. Encoders of text: mnrl or gist (pairs), cosent (scored pairs), "
    "cross_entropy (a classifier), mse (a regressor) or supcon (an embedder of labels); models of images: "
    "cross_entropy, mse or supcon; encoder-decoders: sft; decoders: sft, or preferences by "
    f"{', '.join(_PAIRS)} (pairs), kto (judged responses or pairs), poft (responses, as sft has them); "
    f"by a reward {', '.join(POLICY_LOSSES)}.")
_MARGIN = (
    "gist: a candidate is dropped when the guide finds it closer than the positive minus this margin (None: 0). simpo, "
    f"poft: the lead that is asked for. None: {by_value('margin')}.")
_BETA = (
    f"Preference losses: the scale of the scores; orpo: the weight of the odds. None: {by_value('beta')}. Task rl: the "
    "weight of the divergence from the model before tuning, which rloo takes off the reward. None: 0, rloo 0.05. gkd: "
    "0 covers all that the teacher says, 1 seeks the likeliest. None: 0.5.")
_PLACE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1, metavar="PATH", instance_from_str=lambda words: as_path(words[0]),
    is_instance=lambda x: isinstance(x, Path), str_from_instance=lambda path: [str(path)])
_CLIPS = lambda option: "None: " + ", ".join(
    f"{name} {value:g}" for name, loss in POLICY_LOSSES.items() if (value := getattr(loss, option)) is not None) + "."
_CLIP_LOW = (
    "Task rl: how far the ratio of new to old probability may fall below 1, which is read with --passes above 1 alone. "
    f"{_CLIPS('clip_low')}")
_CLIP_HIGH = f"The same above 1; of cispo the cap itself. {_CLIPS('clip_high')}"
_REWARD = (
    "Task rl: what an answer is worth. exact: 1 where it is the record's `answer` and 0 elsewhere; reasoning-gym:TASK, "
    "which makes the questions too, in place of --data (extra `reasoning`), or reasoning-gym with --data "
    "reasoning_gym/TASK; module:function, a Python function `(texts, records) -> numbers`, where a record has all "
    "columns of its line: those of the format and, as they are, those that --fields leaves out or nothing else reads; "
    "a prompt alone will do. Of several the sum. Each of several processes scores the answers to its own prompts.")
_SMOOTHING = (
    f"{', '.join(name for name, loss in PREFERENCES.items() if loss.label_smoothing is not None)}: the share of labels "
    f"that is taken to be flipped. None: {by_value('label_smoothing')}.")
_LIKELIHOOD = (
    "Losses of pairs: the weight of the likelihood of the chosen response beside them; orpo's is of the prompt too. "
    f"None: {by_value('likelihood')}.")
_REFERENCE = (
    f"{', '.join(name for name, loss in PREFERENCES.items() if loss.reference)}: preset or folder of the model that "
    "responses are compared with; its scores are computed once. None: the model itself, before tuning; poft needs one "
    "or several aligned models.")


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """What trains."""

  method: Annotated[str, tyro.conf.arg(help=_METHODS)] = "lora"
  select: Annotated[tuple[str, ...], tyro.conf.arg(help=_SELECT)] = ()
  rank: int = 8
  """Rank of the factors; of the methods with another size, what stands in its place (miss: rows, hra: reflections)."""
  alpha: float = 16.0
  """Of those with low-rank factors: the update is scaled by alpha / rank, with rslora by alpha / sqrt(rank)."""
  quantize: str | None = None
  """Keep the adapted matrices in nf4 or int8 while the method trains beside them; not for methods that train them."""
  draw: int = 0
  """hft: seed of the half that trains; take another in every stage."""
  dropout: float = 0.0
  """Dropout rate on the input of the low-rank factors."""


@dataclasses.dataclass(frozen=True)
class Examples:
  """What is learnt from."""

  fields: str | None = None
  """Names of a file's columns, theirs=ours: query=anchor,answer=positive; nothing after = leaves the column out.
  `jaxft formats` shows what is known."""
  split: str = "train"
  """Split to train on; TFDS arithmetic, as train[:10%], is understood."""
  validation: str | None = None
  """Split to validate on. None: `validation` where the data set has one, otherwise a random share of the training
  split is held out."""
  holdout: float = 0.05
  """That share; 0 validates on nothing."""
  control: str | None = None
  """A data set of the same kind that is not learnt from, measured as the validation is: what the model forgets of
  it. None: nothing is."""
  max_length: int = 128
  """Longest input in tokens; what is longer is cut. Encoder-decoders: of prompt and answer each."""
  pack: bool = False
  """Put several short examples in one row; they do not see one another. Decoders: where it is asked for. Pairs of an
  encoder: also without, where it saves enough padding, which is said at the start; the loss is the same."""
  pad: bool = False
  """Pairs: give each text a row of its own."""

  @property
  def slots(self) -> int:
    """The most texts of a row that pairs share."""
    return max(1, self.max_length // 4)


@dataclasses.dataclass(frozen=True)
class Loss:
  """What is minimized."""

  task: str | None = None
  """sft, prefer, rl, embed, classify, regress or distill. None: what the columns of the data are for, which is said at
  the start; rl where there is a --reward, distill where there is a --teacher."""
  loss: Annotated[str | None, tyro.conf.arg(help=_LOSS)] = None
  guide: str | None = None
  """Pairs: the preset or folder that judges false negatives, by the loss gist. None with gist: the model itself,
  before tuning."""
  teacher: str | None = None
  """distill: the preset or folder of the model to learn from: of decoders its tokens (gkd), of classifiers its classes
  (kd), of regressors its numbers (value_mse), of encoders its vectors (similarity_kl, similarity_mse, margin_mse,
  embedding_mse)."""
  on_policy: float | None = None
  """gkd: the share of steps on the student's own answers to the prompts, in place of those of the data. None: 0."""
  temperature: float | None = None
  """gist, mnrl, cosent, supcon, gkd, kd, similarity_kl: temperature. None: the loss's own default (gist 0.01, mnrl,
  cosent and similarity_kl 0.05, supcon 0.07, gkd 1, kd 2). Task rl: of the sampled answers, and of their probabilities.
  None: 1."""
  margin: Annotated[float | None, tyro.conf.arg(help=_MARGIN)] = None
  beta: Annotated[float | None, tyro.conf.arg(help=_BETA)] = None
  label_smoothing: Annotated[float | None, tyro.conf.arg(help=_SMOOTHING)] = None
  likelihood: Annotated[float | None, tyro.conf.arg(help=_LIKELIHOOD)] = None
  reference: Annotated[tuple[str, ...], tyro.conf.arg(help=_REFERENCE)] = ()
  desirable_weight: float | None = None
  """kto: what the loss of a desirable response is multiplied by. None: 1."""
  undesirable_weight: float | None = None
  """kto: the same of an undesirable one."""
  reward: Annotated[tuple[str, ...], tyro.conf.arg(help=_REWARD)] = ()
  reward_weights: tuple[float, ...] = ()
  """Of several rewards: what each is multiplied by. None given: 1."""
  marker: str | None = None
  """exact: the answer is what follows this text in its last line that has it. None: the last number."""
  group_size: int | None = None
  """Task rl: answers to each prompt, which are compared with one another; a step learns from --batch-size prompts times
  so many. None: 8."""
  max_new_tokens: int | None = None
  """Task rl, and gkd with --on-policy: the most tokens of an answer. None: 128. --max-length is that of the prompt."""
  clip_low: Annotated[float | None, tyro.conf.arg(help=_CLIP_LOW)] = None
  clip_high: Annotated[float | None, tyro.conf.arg(help=_CLIP_HIGH)] = None
  passes: int | None = None
  """Task rl: updates on the answers of a step, each on all of them. None: 1."""
  drop_cut: bool = False
  """Task rl: learn nothing from answers that --max-new-tokens has cut off."""
  divergence: str | None = None
  """dpo, robust, hinge, exo, discopop: from the reference, by which responses are scored: reverse_kl, forward_kl, js or
  alpha. None: reverse_kl, which is DPO's log-ratio."""
  divergence_alpha: float | None = None
  """Of --divergence alpha. None: 0.5."""
  length_alpha: float | None = None
  """Losses of pairs with a reference that sum log-probabilities: how much tokens count beyond the length of the shorter
  response, in [0, 1] (LD-DPO). None: 1, as all others."""
  wpo: bool = False
  """The same: weigh pairs by how likely the policy itself would give their responses (WPO)."""
  reward_alpha: float | None = None
  """simpo: the shape of AlphaPO's reward (1 - p^-alpha) / alpha; best in 0.1 to 0.25. None: 0, which is log p."""
  target: str | None = None
  """cross_entropy, supcon, mse: the field to learn; kd, value_mse: the one to be measured by. None: label, for mse and
  value_mse value."""
  head: str | None = None
  """cross_entropy, mse, kd, value_mse: what the head reads. first: the first token, by a dense layer, as transformers'
  BertForSequenceClassification does; vector: the model's own vector. None: first for encoders, vector for images."""


@dataclasses.dataclass(frozen=True)
class Optimization:
  """How it is minimized: AdamW."""

  steps: int | None = None
  """Steps in all; more than before lets a run that is resumed go on. None: as many as `epochs` takes."""
  epochs: float = 1.0
  """Passes over the training data, where no steps are given."""
  batch_size: int = 32
  """Examples (packed: rows) a step, over all devices and micro-batches."""
  accumulate: int = 1
  """Micro-batches a step. A contrastive loss still compares the whole batch (GradCache)."""
  learning_rate: Annotated[float | None, tyro.conf.arg(help=_RATE)] = None
  schedule: str = "cosine"
  """After the warm-up: constant, linear or cosine; the last two fall to zero."""
  warmup: float = 0.1
  """Share of the steps in which the learning rate rises from zero."""
  weight_decay: float = 0.0
  """Decoupled weight decay."""
  clip_norm: float = 1.0
  """Largest norm of the gradient; 0 does not clip."""
  seed: int = 0
  """Of everything random: initial factors, order of the data, dropout."""


@dataclasses.dataclass(frozen=True)
class Compute:
  """Where and in what precision."""

  dtype: str = "float32"
  """Of activations and of the weights as they are multiplied: float32 or bfloat16, in which frozen weights are held
  too. What trains stays float32, and the merged model has the weights as they were read."""
  remat: str = "dots"
  """What layers keep for the backward pass: none (everything), dots (outputs of weights) or full (recompute all)."""
  data_parallel: int | None = None
  """Mesh axis `data`. None: all devices that the others leave."""
  fsdp: int = 1
  """Mesh axis `fsdp`: rows of the batch, and parameters cut along it."""
  tensor: int = 1
  """Mesh axis `tensor`: parameters cut along it, each device computing its part."""
  context: int = 1
  """Mesh axis `context`: positions of each row cut along it, for long inputs of decoders (ring attention); it
  divides --max-length."""
  slices: int | None = None
  """Mesh axis `dcn`: slices of a pod, joined by the data centre's network; None: as many as the TPUs form."""


@dataclasses.dataclass(frozen=True)
class Output:
  """What is kept."""

  out: Annotated[Path, _PLACE] = Path("runs/finetune")
  """Folder of config, metrics, checkpoints and the tuned model, also in an object store (s3://bucket/run, gs://...); a
  run that it holds already is resumed."""
  overwrite: bool = False
  """Delete the run in that folder, once all that the new one reads is known to be good, and start anew."""
  merge: bool = True
  """Write the tuned model, adapter and all in one, to model/. Off: only adapter/, in PEFT's form."""
  checkpoint_every: int = 500
  """Steps between checkpoints; the last step is always saved."""
  keep: int = 2
  """Checkpoints kept."""
  eval_every: int | None = None
  """Steps between validations; None: before the first and after the last step only."""
  log_every: int = 10
  """Steps between lines of metrics.jsonl."""
  stop_if_not_finite: bool = True
  """End the run at the first loss, gradient norm or update norm that is not finite; nothing is saved from there on."""
  track: tuple[str, ...] = ()
  """Write metrics for tensorboard, wandb or mlflow too, in a folder of that name (extras of the same names). Offline,
  unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise."""


@dataclasses.dataclass(frozen=True)
class Finetune:
  """Fine-tunes a pretrained model on a data set."""

  model: str
  """A preset (minilm-l6, mpnet-base, smollm2-135m, efficientnet-lite0), a Hugging Face folder (on disk, s3:// or
  gs://), or hf:org/name (extra `hub`)."""
  data: str | None = None
  """A data set (docstrings, sentiment/neighbours-news, reasoning_gym/<task>, tfds:<name>, hf:<org>/<name>), a .jsonl
  file (text or the path of an image, with a label or a value, among others), a folder with a folder of pictures for
  each class, or one that TFDS prepared; a file or folder may lie at s3:// or gs:// too."""
  method: Annotated[Adaptation, tyro.conf.arg(name="adaptation")] = Adaptation()
  examples: Examples = Examples()
  loss: Annotated[Loss, tyro.conf.arg(name="objective")] = Loss()
  optimization: Optimization = Optimization()
  compute: Compute = Compute()
  output: Output = Output()


def parse(args: list[str], *, command: str, description: str | None) -> Finetune:
  """The options of a command line; `--help` ends the process as argparse does, and faults are ValueErrors."""
  return command_line.parse(
      Finetune, args, prog=f"jaxft {command}", description=description, config=(tyro.conf.OmitArgPrefixes,))


def defining(options: Finetune) -> dict[str, Any]:
  """The options that make the run what it is, flat and in JSON values.

  Options that may change when a run is resumed are left out: where and how often it is saved, and where it computes.
  """
  free = {field.name for group in (Compute, Output) for field in dataclasses.fields(group)} - {"dtype"}
  flat: dict[str, Any] = {}
  for name, value in dataclasses.asdict(options).items():
    flat |= value if isinstance(value, dict) else {name: value}
  return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items() if key not in free}
