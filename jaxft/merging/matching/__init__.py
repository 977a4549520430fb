"""Networks that were trained apart: permutations that match their units, and merges of what was matched."""
