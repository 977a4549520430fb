"""Studies of models of pictures and texts."""
