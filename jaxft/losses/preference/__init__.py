"""Losses of preferences: what a response scores, and how a chosen and a rejected score are ranked.

Nearly all of them are one choice on each of two axes:

- the score: a log-ratio to a reference, summed or per token (`dpo`, `ipo`), its f-divergence (`divergence_score`), the
  log-probability itself (`cpo` sums, `simpo` averages), its log odds (`orpo`, `asft`), `alpha_reward`, a reward head;
- the ranking: of the difference (`bradley_terry`) or of each response by itself (`pointwise_preference`).

Sums and averages are the trap: each docstring says which it takes, and `sequence_log_probs` gives either.
"""
