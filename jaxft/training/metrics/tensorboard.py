"""Metrics for TensorBoard."""

import os

from jaxft.training.metrics.trackers import check_tracker


class TensorBoard:
  """Scalars for TensorBoard, written by tensorboardX.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   writer = TensorBoard(folder)
  ...   writer.write(10, {"loss": 2.5})
  ...   writer.close()

  Raises:
    ImportError: tensorboardX is not installed; the message says how to get it.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    check_tracker("tensorboard")
    import tensorboardX

    self._make = lambda **kwargs: tensorboardX.SummaryWriter(os.fspath(folder), **kwargs)
    self._writer = self._make()

  def write(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def rewind(self, step: int) -> None:
    """Tells TensorBoard to hide what an earlier run wrote after this step; its files are append-only."""
    self._writer.close()
    self._writer = self._make(purge_step=step + 1)

  def close(self) -> None:
    self._writer.close()
