"""Where metrics go: lines of JSON, TensorBoard, Weights & Biases, MLflow, or any object with the same three methods.

A writer has `write(step, values)`, `rewind(step)` (forget everything after that step, so that a resumed run writes no
step twice) and `close()`.
"""

from jaxft.training.metrics.json_lines import JsonLines, read_json_lines
from jaxft.training.metrics.mlflow import MLflow
from jaxft.training.metrics.tensorboard import TensorBoard
from jaxft.training.metrics.trackers import TRACKERS, check_tracker, tracker
from jaxft.training.metrics.wandb import WandB
from jaxft.training.metrics.writer import Writer
