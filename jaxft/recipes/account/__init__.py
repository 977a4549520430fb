"""What a run says of itself: what its data hold, how long it takes, what it reached, and where everything lies."""
