"""Updates of DPO and of GRPO beside TRL's trainers, in one run: `python -m benchmarks.post_training`."""
