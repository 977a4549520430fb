"""Chosen rows, columns and entries, and random subspaces of all of them."""
