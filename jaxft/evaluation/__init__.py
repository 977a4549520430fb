"""Evaluation: metrics defined as the field's packages define them, and the results that they are written into."""

from jaxft.evaluation.calibration import (
    brier_score,
    calibration_error,
    classwise_calibration_error,
    fit_temperature,
)
from jaxft.evaluation.code import exact_match_at_k, pass_at_k
from jaxft.evaluation.continual import harmonic_mean, normalized_accuracy, retention, transfer_metrics
from jaxft.evaluation.correlation import average_ranks, pearson, r_squared, spearman
from jaxft.evaluation.crossed import CrossedMean, crossed_mean, influences, jackknife_ratio, ratio
from jaxft.evaluation.descriptions import (
    Readability,
    TextCounts,
    cumulative_prefixes,
    mean_rank,
    net_preference,
    readability,
    sentences,
    text_counts,
)
from jaxft.evaluation.embeddings.attribute_spaces import attribute_precision, chance_precision, entanglement
from jaxft.evaluation.embeddings.compatibility import (
    average_compatibility,
    average_multimodel_accuracy,
    class_templates,
    compatibility_violations,
    identification_hits,
)
from jaxft.evaluation.embeddings.embedding_space import alignment, modality_gap, uniformity
from jaxft.evaluation.embeddings.self_retrieval import bag_retrieval, random_distractor_recall
from jaxft.evaluation.embeddings.separability import Separability, class_separability, knn_accuracy
from jaxft.evaluation.environments import EnvironmentScores, by_environment
from jaxft.evaluation.multiple_choice import multiple_choice_accuracy, multiple_choice_metrics, predict_choice
from jaxft.evaluation.multiplicity import benjamini_hochberg, holm
from jaxft.evaluation.perplexity import bits_per_byte, perplexity, rolling_windows
from jaxft.evaluation.phrasing import PhrasingReport, Wordings, option_scores, phrasing_report
from jaxft.evaluation.probe import few_shot_accuracy, fit_logistic, fit_ridge, ridge_probe
from jaxft.evaluation.retrieval import judged_relevance, ranking_metrics, retrieval_metrics, streaming_top_k
from jaxft.evaluation.rewards.best_of_n import best_of_n_curve, best_of_n_divergence
from jaxft.evaluation.rewards.consistency import pairwise_consistency
from jaxft.evaluation.scoring import encode_pair, score_choices
from jaxft.evaluation.stages import backward_transfer, forward_transfer, overall_performance
from jaxft.evaluation.text import bleu, caption_faithfulness, exact_match, rouge, token_f1
from jaxft.evaluation.uncertainty import (
    Bootstrap,
    PairedComparison,
    PairedTest,
    paired_bootstrap,
    paired_comparison,
    paired_test,
    stderr,
)
