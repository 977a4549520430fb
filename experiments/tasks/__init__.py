"""The tasks, data and models that several experiments share."""
