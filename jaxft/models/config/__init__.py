"""The shapes of models, and what of their layers differs from one to the next."""
