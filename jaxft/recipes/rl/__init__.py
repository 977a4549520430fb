"""Tuning by rewards: policy losses by name, rewards by name, prompts, a step with its rollouts, what is measured."""
