"""Where a function rightly does otherwise with a wrong argument, and why."""

# Functions whose examples do not call them by their own name, and why.
NOT_CALLED: dict[str, str] = {}

# (function, argument, what is wrong with it) -> why it stays.
EXCEPTIONS: dict[tuple[str, str, str], str] = {
    ("jaxft.selection.sequence_perplexity", "where", "all false"): "a text without a token that counts gives NaN",
    ("jaxft.tree.as_choice", "choice", "a str"): "it is called what its caller calls it, `select` by default",
    ("jaxft.analysis.seed_stability", "scores", "holes"): "all runs failed: there are no others, whose mean is NaN",
    ("jaxft.analysis.seed_stability", "chance", "a flag"): "all runs failed: there are no others, whose mean is NaN",
    ("jaxft.evaluation.option_scores", "option_mask", "all false"): "-inf is the score of a choice without a token",
    ("jaxft.evaluation.option_scores", "log_probs", "axis 1 empty"): "-inf is the score of a choice without a token",
}
_GUIDE = "the similarities of the guide are named, of which the caller's arrays are the two sides"
EXCEPTIONS |= {("jaxft.losses.guided_info_nce", side, label): _GUIDE
               for side in ("guide_query", "guide_positive") for label in ("NaN", "infinite")}
_MASK = "the choice is `select` wherever a mask is made of one"
EXCEPTIONS |= {("jaxft.tree.mask", "choice", label): _MASK for label in ("unknown", "empty")}
_TREE = "what was looked for in the tree, and what is there, are named"
EXCEPTIONS |= {("jaxft.tree.mask", "tree", label): _TREE
               for label in ("empty", "another structure", "a list", "None")}
_FUSED = "the delta's path that the tree lacks, and what is there, are named"
EXCEPTIONS |= {("jaxft.merging.unfuse", "fused", label): _FUSED
               for label in ("empty", "another structure", "a list", "None")}
EXCEPTIONS |= {("jaxft.merging.unfuse", "old", label): "it is a delta, and is called so"
               for label in ("another structure", "an array longer")}
EXCEPTIONS[("jaxft.merging.streaming.parse_recipes", "text", "unknown")] = "it is the configuration, as in a file"
