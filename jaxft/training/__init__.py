"""Training: meshes and partition rules, the step, the loop, checkpoints, metrics and the cost of it all."""

from jaxft.training.checkpoints import Checkpoints, fingerprint_of
from jaxft.training.checksums import checksum
from jaxft.training.cost import Cost, cost_table, training_cost
from jaxft.training.feature_bank import FeatureBank, empty_bank, push
from jaxft.training.gradient_cache import cached_value_and_grad, embed_cached
from jaxft.training.interrupts import Stopped
from jaxft.training.loop import fit
from jaxft.training.mesh import batch_sharding, make_mesh, place_batch
from jaxft.training.metrics import JsonLines, MLflow, TensorBoard, WandB, read_json_lines
from jaxft.training.planning.placement import Finding, Placement, check_placement, check_rules
from jaxft.training.planning.plan import Compiled, Plan, plan
from jaxft.training.planning.sizes import bytes_per_device
from jaxft.training.recipe import Recipe
from jaxft.training.rules import DECODER_RULES, ENCODER_RULES
from jaxft.training.sharding import follows_of, inherit_specs, shardings_for, specs_for
from jaxft.training.state import TrainState, abstract_state, init_state
from jaxft.training.step import TrainStep, cast_floating, make_train_step
from jaxft.training.trials.successive_halving import Halved, Round, successive_halving
from jaxft.training.watch import Diverged
