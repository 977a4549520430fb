"""What several processes, saves and starts cost: 2 processes x 1 device beside 1 x 2, async saves, the first step."""
