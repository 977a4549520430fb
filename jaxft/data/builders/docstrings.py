"""`docstrings`: a function's name and signature with the first sentence of its docstring, from installed packages."""

import dataclasses
import hashlib
import json

import tensorflow_datasets as tfds

from jaxft.data.builders.mining import STANDARD_LIBRARY, Function, mine_functions, package_version
from jaxft.data.prepare import config_of

# No package is in two splits. Packages that copy each other's sentences (jax.numpy and NumPy) are on one side, and
# those of validation and test are dependencies of jaxft itself, so that these splits exist wherever it is installed.
PACKAGES = {
  "train": (
    STANDARD_LIBRARY, "numpy", "scipy", "sklearn", "matplotlib", "jax", "tensorflow_datasets", "etils", "absl", "PIL",
    "opt_einsum",
  ),
  "validation": ("flax", "chex", "treescope", "tyro", "tqdm"),
  "test": ("optax", "orbax", "grain", "safetensors"),
}


@dataclasses.dataclass(kw_only=True)
class DocstringsConfig(tfds.core.BuilderConfig):
  """Which packages are mined, and in which versions."""

  versions: dict[str, str] = dataclasses.field(default_factory=dict)


def installed() -> DocstringsConfig:
  """The config of the packages on this machine; its name changes with any of their versions."""
  everywhere = [package for packages in PACKAGES.values() for package in packages]
  versions = {package: version for package in everywhere if (version := package_version(package))}
  digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:12]
  listed = ", ".join(f"{package} {version}" for package, version in versions.items())
  return DocstringsConfig(name=f"versions-{digest}", versions=versions, description=f"Mined from {listed}.")


class Docstrings(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Pairs for retrieval and code: `anchor` is a signature, `positive` the first sentence of its docstring.

  Sources are read with `ast`; nothing is imported. Split by package. A sentence or signature that occurs again
  anywhere is kept once, in test before validation before train. Which versions were mined is in the config and in
  `builder.info.metadata["versions"]`; another set of versions is another config, prepared beside the first.
  """

  name = "docstrings"
  VERSION = tfds.core.Version("1.0.1")

  def __init__(self, *, config: DocstringsConfig | None = None, **kwargs):
    super().__init__(config=config or installed(), **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{self.__doc__}\n\n{config_of(self).description}",
      disable_shuffling=True,
      supervised_keys=("anchor", "positive"),
      metadata=tfds.core.MetadataDict(versions=config_of(self).versions),
      features=tfds.features.FeaturesDict({
        "anchor": text(doc="qualified name and signature"),
        "positive": text(doc="first sentence of the docstring"),
        "body": text(doc="source without docstring and comments"),
        "package": text(), "module": text(), "name": text(doc="name qualified within the module"),
      }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the sources are on this machine
    seen: set[str] = set()
    versions = config_of(self).versions
    mined = {split: _mine(PACKAGES[split], versions, seen) for split in ("test", "validation", "train")}
    return {split: self._generate_examples(mined[split]) for split in PACKAGES}

  def _generate_examples(self, functions):
    for i, (package, function) in enumerate(functions):
      yield i, {
        "anchor": function.signature, "positive": function.sentence, "body": function.body,
        "package": package, "module": function.module, "name": function.name,
      }


def _mine(packages: tuple[str, ...], versions: dict[str, str], seen: set[str]) -> list[tuple[str, Function]]:
  """The functions of the packages that `versions` lists, without what `seen` holds already; adds to `seen`."""
  kept = []
  for package in packages:
    for function in mine_functions(package) if package in versions else ():
      sides = {function.sentence.lower().rstrip(".!?"), function.signature}
      if seen.isdisjoint(sides):
        seen |= sides
        kept.append((package, function))
  return kept
