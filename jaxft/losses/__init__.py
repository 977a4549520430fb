"""Losses: arrays in, `(values, weights)` per example or token out; `Mean.of(*loss(...))` reduces them."""

from jaxft.losses.consistency import FeatureMetric, cross_model_contrastive, entropy, feature_consistency, pseudo_label
from jaxft.losses.contrastive import (
    cosine_similarity,
    focal,
    info_nce,
    normalize,
    supervised_contrastive,
    view_contrastive,
)
from jaxft.losses.distances import Metric, all_distances, pair_distances
from jaxft.losses.distillation import candidate_scores, distill_scores, margin_mse
from jaxft.losses.divergence.distilled import distill_logits, generalized_jsd, linear_generalized_jsd
from jaxft.losses.divergence.kl import kl_divergence, next_tokens, symmetric_kl
from jaxft.losses.divergence.passes import noise_consistency, paraphrase_consistency
from jaxft.losses.feature_calibration import calibrate_features, rotation
from jaxft.losses.guided_contrastive import MarginStrategy, false_negative_mask, guided_info_nce
from jaxft.losses.in_batch import (
    Similarity,
    clip,
    contrastive_blocks,
    in_batch_scores,
    mega_batch_margin,
    multiple_negatives_ranking,
    siglip,
    symmetric_multiple_negatives_ranking,
)
from jaxft.losses.language import (
    Aggregation,
    aggregate_tokens,
    sequence_log_probs,
    token_log_probs,
    token_weights,
    weighted_nll,
)
from jaxft.losses.late_interaction import late_interaction, maxsim, maxsim_candidates
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from jaxft.losses.mixed_contrastive import (
    core_tuning,
    mixed_negative_contrastive,
    mixed_negatives_ranking,
    soft_clip,
)
from jaxft.losses.mixing import (
    HardestPairs,
    blend_negatives,
    core_tuning_pairs,
    hardest_pairs,
    mix_negatives,
    mixup_targets,
    slerp,
)
from jaxft.losses.nested import LayerWeights, adaptive_layers, deep_supervision, matryoshka, matryoshka_2d, submodels
from jaxft.losses.pairs import (
    angle,
    contrastive_pairs,
    contrastive_tension,
    cosent,
    cosine_regression,
    online_contrastive_pairs,
    pair_features,
)
from jaxft.losses.policy.advantages import (
    Scale,
    gae,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
    overlong_penalty,
    shaped_rewards,
)
from jaxft.losses.policy.clipped import clipped_policy_loss, clipped_value_loss
from jaxft.losses.policy.masks import drop_truncated, top_entropy_mask
from jaxft.losses.policy.ratios import Estimator, Level, importance_ratio, kl_estimate, off_policy_mask
from jaxft.losses.policy.softened import cispo, sapo, vespo
from jaxft.losses.preference.direct import aot, dpo, ipo
from jaxft.losses.preference.pairwise import Ranking, bradley_terry
from jaxft.losses.preference.pointwise import PointwiseRanking, pointwise_preference
from jaxft.losses.preference.reference_free import asft, cpo, orpo, poft, simpo
from jaxft.losses.preference.reward_model import reward_model
from jaxft.losses.preference.scores import (
    Divergence,
    alpha_reward,
    divergence_score,
    length_desensitized,
    log1mexp,
    log_odds,
    wpo_weights,
)
from jaxft.losses.preference.unpaired import Unpaired, kto, mismatched_kl
from jaxft.losses.ranking.lambda_loss import Scheme, lambda_loss, rank_net
from jaxft.losses.ranking.listwise import list_mle, list_net, rank_mse
from jaxft.losses.ranking.pointwise import binary_cross_entropy, cross_entropy, soft_cross_entropy, squared_error
from jaxft.losses.reduction import Mean, Terms
from jaxft.losses.regularization import global_orthogonal, l1_to_reference, l2_to_reference, sum_of_norms
from jaxft.losses.score_function import Reward, leave_one_out, reinforce, retrieval_reward, whiten
from jaxft.losses.sparse import csr_reconstruction, flops, splade, splade_weights
from jaxft.losses.tokens.linear_log_probs import (
    TokenStatistics,
    linear_sequence_log_probs,
    linear_token_log_probs,
    token_statistics,
)
from jaxft.losses.tokens.text_ids import packed_text_ids, text_ids
from jaxft.losses.tokens.token_losses import Penalty, dynamic_fine_tuning, replaced_token_detection, span_penalty
from jaxft.losses.triplets import batch_all_triplet, batch_hard_triplet, batch_semi_hard_triplet, triplet
