"""What stands on a model: classifiers and readers of its features."""
