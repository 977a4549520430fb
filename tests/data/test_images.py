"""Pictures of every kind that people have, as squares of red, green and blue."""

import io

import numpy as np
import pytest

from jaxft.data.builders.image_folder import image_folder_builder
from jaxft.data.images import image_problem, read_image
from jaxft.models.pixels import Framing

Image = pytest.importorskip("PIL.Image")
TALL = np.zeros((8, 4, 3), np.uint8)
TALL[:4] = (200, 0, 0)  # red above black


def test_what_a_camera_held_sideways_is_turned_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise by 90 degrees
  Image.fromarray(np.rot90(TALL)).save(tmp_path / "turned.png", exif=exif)
  np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 4), read_image(TALL, 4))


def test_a_picture_of_sixteen_bits_keeps_its_shades(tmp_path):
  shades = np.linspace(0, 65535, 16).reshape(4, 4)
  Image.fromarray(shades.astype(np.uint16)).save(tmp_path / "deep.png")
  read = read_image(tmp_path / "deep.png", 4)
  np.testing.assert_array_equal(read[..., 0], np.rint(shades / 257))


@pytest.mark.parametrize("dtype, words", [(np.int32, "integers of 32 bits"), (np.float32, "floats")])
def test_numbers_without_a_white_are_refused(dtype, words, tmp_path):
  picture = Image.fromarray(np.ones((4, 4), dtype))
  picture.save(tmp_path / "deep.tiff")
  assert f"bits a channel; {tmp_path / 'deep.tiff'} has {words}" in (image_problem(tmp_path / "deep.tiff") or "")
  for image in (picture, tmp_path / "deep.tiff"):
    with pytest.raises(ValueError, match=f"image must have 8 or 16 bits a channel; .*{words}"):
      read_image(image, 4)


def test_one_that_would_fill_the_memory_is_named(tmp_path, monkeypatch):
  Image.fromarray(TALL).save(tmp_path / "huge.png")
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
  assert "huge.png" in (image_problem(tmp_path / "huge.png") or "")


def test_framings():
  np.testing.assert_array_equal(read_image(TALL, 2, Framing(stretch=True, resample="nearest"))[:, 0, 0], [200, 0])
  np.testing.assert_array_equal(read_image(TALL, 2, Framing(shorter_side=4)), TALL[3:5, 1:3])
  np.testing.assert_array_equal(read_image(Image.fromarray(TALL), 4), TALL[2:6])
  with pytest.raises(ValueError, match="shorter_side must be None"):
    Framing(shorter_side=4, stretch=True)
  with pytest.raises(ValueError, match="resample must be one of .*nearest: bilinear"):
    Framing(resample="linear")


@pytest.mark.parametrize("image, error", [
    (None, "image must be a path.*None"), (3, "image must be a path.*3"), (b"png", "image must be a path"),
    (np.zeros((0, 4, 3), np.uint8), r"image must be bytes .*\[0, 4, 3\]"),
    (np.zeros((4, 4, 3), np.float32), "image must be bytes .*float32"),
])
def test_what_is_no_picture_is_named(image, error):
  with pytest.raises((TypeError, ValueError), match=error):
    read_image(image, 4)
  with pytest.raises(ValueError, match=r"size must .*; got 0"):
    read_image(TALL, 0)


def test_a_folder_passes_over_what_windows_leaves_and_names_a_link_to_nothing(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    out = io.BytesIO()
    Image.fromarray(TALL).save(out, "PNG")
    (tmp_path / "photos" / name / "1.png").write_bytes(out.getvalue())
    (tmp_path / "photos" / name / "Thumbs.db").write_bytes(b"thumbs")
  made = image_folder_builder(tmp_path / "photos", data_dir=tmp_path / "prepared")
  assert made.info.splits["train"].num_examples == 2
  (tmp_path / "photos" / "cat" / "2.png").symlink_to(tmp_path / "nowhere.png")
  with pytest.raises(ValueError, match="cat must hold pictures alone; 2.png is a link to nothing"):
    image_folder_builder(tmp_path / "photos", data_dir=tmp_path / "prepared")
