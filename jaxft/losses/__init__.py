"""Losses: arrays in, `(values, weights)` per example or token out; `Mean.of(*loss(...))` reduces them."""

from jaxft.losses.consistency import entropy, pseudo_label
from jaxft.losses.contrastive import (
    clip,
    contrastive_blocks,
    cosine_similarity,
    info_nce,
    multiple_negatives_ranking,
    normalize,
    supervised_contrastive,
)
from jaxft.losses.guided_contrastive import MarginStrategy, false_negative_mask, guided_info_nce
from jaxft.losses.language import (
    Aggregation,
    aggregate_tokens,
    sequence_log_probs,
    token_log_probs,
    token_weights,
    weighted_nll,
)
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from jaxft.losses.reduction import Mean
from jaxft.losses.regularization import l1_to_reference, l2_to_reference, sum_of_norms
