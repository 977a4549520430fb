"""What to choose: modules at random, rows and heads, the top k of a score, layers by a score or a search."""

from jaxft.choices.layers import robust_threshold_layers, top_layers
from jaxft.choices.module_search import Search, layer_ranges, tree_search, within_layers
from jaxft.choices.random_modules import (
    chosen_fraction,
    cut_at_changes,
    random_module_mask,
    select_units,
    unit_indices,
)
from jaxft.choices.rows import choose_rows, chosen_rows, head_units
from jaxft.choices.s2ft import s2ft_units, unit_norms
from jaxft.choices.scores import change_scores, fisher_scores, gradient_scores, magnitude_scores
from jaxft.choices.top_k import lottery_ticket_mask, top_k_mask
