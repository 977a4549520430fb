"""What a writer of metrics is."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Writer(Protocol):
  """What the training loop asks of a writer."""

  def write(self, step: int, values: dict[str, float]) -> None: ...

  def rewind(self, step: int) -> None: ...

  def close(self) -> None: ...
