"""Updates of matrices with a structure that multiplies cheaply."""
