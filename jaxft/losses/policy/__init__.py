"""Policy gradients on sampled text: advantages, ratios, clipped and softened losses, masks.

A loss gives one value for each token, and `aggregate_tokens` reduces them. What is called GRPO, DAPO and so on is a
loss and a mode:

- `clipped_policy_loss`, "seq-mean-token-mean": GRPO; with level="sequence" GSPO; with level="sequence-sum" RLOO;
- the same, "token-mean": DAPO, with high=0.28; BNPO, whose mean is that of a micro-batch; PPO;
- the same, "seq-mean-token-sum-norm" and the longest length: Dr. GRPO, with `group_advantages(..., scale="none")`;
- the same, "seq-mean-token-sum" and level="sequence": LUSPO;
- `cispo` and `vespo`, "token-mean"; `sapo`, "seq-mean-token-mean".

TRL's means over sequences count those without a token as well: `aggregate_tokens(..., count_empty=True)`.
"""
