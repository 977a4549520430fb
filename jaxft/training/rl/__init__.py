"""Reinforcement learning from rewards that a program can give: rollouts by the library's own decoding, GRPO and PPO.

    sampled = rollout(stepwise_decoder(params, config), prompts, key, samples=8, max_new_tokens=64)
    rewards = jnp.array([reward(text) for text in texts]).reshape(-1, 8)
    state, metrics = grpo_update(step, state, frozen, sampled, rewards)

Three things set the policy that learns apart from the one that sampled, and each has its correction: it has taken steps
on the same rollouts (the clipped ratio to `old_log_probs`); its arithmetic or its weights are not the sampler's (the
capped ratio of `old_log_probs` to `sampling_log_probs`, `sampling_cap`); or a response has become so unlikely that no
weight helps (`off_policy_threshold` leaves out bad responses that the policy would hardly give). Temperature is none of
these: log-probabilities are to be taken at that of the rollouts. Filters such as top-p are only corrected by the cap.
"""

from jaxft.training.rl.decoder_outputs import decoder_log_probs, decoder_log_probs_and_values, init_value_head
from jaxft.training.rl.grpo import grpo_objective, grpo_update
from jaxft.training.rl.ppo import ppo_objective, ppo_update
from jaxft.training.rl.rollouts import PolicyBatch, Rollouts, rollout
