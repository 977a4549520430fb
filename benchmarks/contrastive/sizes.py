"""Which batches are compared, how far each kind of step goes, and how often."""

IN_BATCH, CACHED = 64, 1024  # pairs, of the two comparisons that have a target
TARGET = 1.5
BATCHES = (64, 256, 1024, 4096)
# The largest batch of a step that holds all activations at once, in a few GB.
WITHOUT_CACHE = {"jaxft-packed": 256, "jaxft-padded": 64, "sentence-transformers-in-batch": 64}
ROUNDS = {64: 5, 256: 3, 1024: 3, 4096: 1}
WARM_UP = {64: 1, 256: 1, 1024: 0, 4096: 0}  # a start costs little of steps that take a minute
