"""Data sets by name: prepared once, safely, read at random, without TensorFlow."""

import pathlib
import pickle
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxft import data
from jaxft.data.builders.digits import Digits


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp("datasets")


def test_digits_are_scikit_learns(prepared):
  from sklearn.datasets import load_digits

  splits = [data.source("digits", split, data_dir=prepared) for split in ("train", "validation", "test")]
  images = np.concatenate([np.stack([record["image"] for record in split]) for split in splits])
  np.testing.assert_array_equal(images[..., 0] * 16, load_digits().images)
  assert [record["label"] for split in splits for record in split] == load_digits().target.tolist()
  assert images.dtype == np.float32


def test_records_read_like_a_sequence(prepared):
  records = data.source("digits", "test", data_dir=prepared)
  assert len(records) == 300
  np.testing.assert_array_equal(records[-1]["image"], records[299]["image"])
  np.testing.assert_array_equal(records[np.int64(3)]["image"], records.__getitems__([3])[0]["image"])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(records))[7]["image"], records[7]["image"])
  with pytest.raises(IndexError, match=r"index must lie in \[-300, 300\); got 300"):
    records[300]
  assert len(data.source("digits", "train[:10%]+test", data_dir=prepared)) == 120 + 300


def test_a_prepared_folder_is_a_name(prepared):
  folder = data.prepare(Digits, data_dir=prepared).data_dir
  by_path, by_name = data.source(folder, "test"), data.source("digits", "test", data_dir=prepared)
  np.testing.assert_array_equal(by_path[5]["image"], by_name[5]["image"])


def test_a_prepared_folder_imports_no_class_of_somebody_else(prepared, tmp_path):
  folder = shutil.copytree(data.prepare(Digits, data_dir=prepared).data_dir, tmp_path / "digits")
  features = folder / "features.json"
  features.write_text(features.read_text().replace("tensorflow_datasets.core.features.tensor_feature.Tensor", "evil.T"))
  with pytest.raises(ValueError, match="must name classes of tensorflow_datasets alone; got 'evil.T'"):
    data.source(folder, "train")
  features.write_text("[" * 100_000)
  with pytest.raises(ValueError, match="is no folder that TFDS prepared"):
    data.source(folder, "train")


def test_preparing_twice_writes_the_same_bytes_and_once_only(tmp_path):
  first, second = (data.prepare(Digits, data_dir=tmp_path / name) for name in "ab")
  files = lambda builder: {path.name: path.read_bytes() for path in sorted(builder.data_path.glob("*array_record*"))}
  assert files(first) == files(second) and len(files(first)) == 3
  folder = pathlib.Path(first.data_dir)
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  data.prepare(Digits, data_dir=tmp_path / "a")
  assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_several_at_once_prepare_it_once(tmp_path, capfd):
  with ThreadPoolExecutor(4) as pool:
    builders = list(pool.map(lambda _: data.prepare(Digits, data_dir=tmp_path), range(4)))
  assert capfd.readouterr().err.count("preparing digits") == 1
  assert len({tuple(builder.as_data_source("test")[0]["image"].ravel()) for builder in builders}) == 1


def test_a_failure_leaves_nothing_that_looks_prepared(tmp_path):
  class Failing(Digits, skip_registration=True):
    name = "failing"

    def _generate_examples(self, images, labels):
      yield from list(super()._generate_examples(images, labels))[:5]
      raise RuntimeError("disk on fire")

  with pytest.raises(RuntimeError, match="disk on fire"):
    data.prepare(Failing, data_dir=tmp_path)
  assert not list(tmp_path.rglob("dataset_info.json"))
  Failing._generate_examples = Digits._generate_examples
  assert len(data.prepare(Failing, data_dir=tmp_path).as_data_source("test")) == 300


def test_offline_a_tfds_data_set_is_one_error_in_seconds(tmp_path, monkeypatch):
  from tensorflow_datasets.core.download import downloader

  from jaxft.fetch import NotAvailable

  for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
  tries = downloader.MAX_RETRIES
  with pytest.raises(NotAvailable, match=r"mnist/.* is not prepared here, and what it needs .* downloaded: https://"):
    data.source("tfds:mnist", "train", data_dir=tmp_path)
  assert downloader.MAX_RETRIES == tries > 3


def test_any_tfds_data_set_by_name(tmp_path):
  class JaxftNumbers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"n": np.int32}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from ((i, {"n": i}) for i in range(5))

  records = data.source("tfds:jaxft_numbers", "train", data_dir=tmp_path)
  assert sorted(record["n"] for record in records) == list(range(5))


@pytest.mark.parametrize(("name", "split", "message"), [
  ("digist", "train", "'digist' is no data set nor a folder here; nearest: digits"),
  ("sentiment/new", "train", "nearest: sentiment/news"),
  ("tfds:mnsit", "train", "must be a TFDS data set after tfds:; got 'mnsit'; nearest: mnist"),
  ("digits", "tset", "split must be one of train, validation, test or made of them; got 'tset'; nearest: test"),
  ("digits", "train[:5", "split must be made of train, validation, test"),
  (".", "train", "must be the folder that TFDS prepared"),
  ("missing.jsonl", "train", "there is none at missing.jsonl"),
])
def test_unknown_names_meet_their_nearest(prepared, name, split, message):
  with pytest.raises(ValueError, match=message):
    data.source(name, split, data_dir=prepared)


def test_no_tensorflow_and_no_torch(prepared):
  program = textwrap.dedent(f"""
    import sys
    from jaxft import data
    batch = data.batches(data.source("digits", "train", data_dir={str(prepared)!r}), batch_size=8, seed=0)[3]
    assert batch["image"].shape == (8, 8, 8, 1) and batch["label"].dtype == "int32"
    assert not {{"tensorflow", "torch"}} & set(sys.modules)
  """)
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
