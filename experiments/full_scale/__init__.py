"""Systems at the size of their papers: programs over public checkpoints and data, beside the studies' small ones."""
