"""What is read from the function of a model: its jaxpr, how it uses each leaf, and which units leaves share."""
