"""Every loss, transform and merge has a case in its contract: a new one without is told here."""

import inspect
import re
from pathlib import Path

from jaxft import losses, merging, transforms

HERE = Path(__file__).parent
# What has no case, and why.
NO_LOSS = {
    "aggregate_tokens", "token_weights",  # give weights, or a mean of values
    "all_distances", "contrastive_blocks", "cosine_similarity", "false_negative_mask", "maxsim",
    "pair_distances",  # parts of losses that have cases
    "candidate_scores", "in_batch_scores", "maxsim_candidates", "pair_features", "splade_weights",
    "packed_text_ids", "text_ids",  # what losses are given
    "blend_negatives", "core_tuning_pairs", "hardest_pairs", "mix_negatives", "slerp",  # mixtures; test_mixing.py
    "calibrate_features", "rotation",  # test_feature_calibration.py
    "leave_one_out", "retrieval_reward", "whiten",  # rewards and baselines; test_score_function.py
    "focal",  # of a loss's values
    "dynamic_fine_tuning",  # whose factor is a constant to the gradient and not to differences; test_tokens.py
    "next_tokens",  # labels
    "drop_truncated", "gae", "group_advantages", "importance_ratio", "informative_groups", "leave_one_out_advantages",
    "off_policy_mask", "overlong_penalty", "shaped_rewards", "top_entropy_mask",  # test_policy.py
    "alpha_reward", "divergence_score", "length_desensitized", "log1mexp", "log_odds", "mismatched_kl",
    "wpo_weights",  # scores and weights of responses; test_preference.py
    "l1_to_reference", "l2_to_reference", "sum_of_norms",  # of trees
}
NO_TRANSFORM = {
    "bitfit", "norm_tuning",  # `train` of a choice; `test_small_leaves.py` holds them
    "learned_scale",  # what `ia3` is made of, with one more argument
}
NO_MERGE = {"regmean"}  # needs statistics of data; `tests/merging/test_regression_mean.py`


def named_in(*patterns):
  text = "\n".join(file.read_text() for pattern in patterns for file in HERE.glob(pattern))
  return set(re.findall(r"\w+", text))


def functions(module):
  found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
  return {name: f for name, f in found.items() if inspect.isfunction(inspect.unwrap(f))}


def test_every_loss_has_a_case():
  assert set(functions(losses)) - named_in("losses.py", "losses_*.py") == NO_LOSS


def test_every_transform_has_a_case():
  made = {name for name, f in functions(transforms).items()
          if inspect.signature(f).return_annotation is transforms.ParamTransform}
  assert len(made) > 30 and made - named_in("cases_*.py") == NO_TRANSFORM


def test_every_merge_of_several_models_has_a_case():
  made = {name for name, f in functions(merging).items() if "models" in inspect.signature(f).parameters}
  assert len(made) > 10 and made - named_in("merges.py") == NO_MERGE
