"""Losses of scores that a model gives to pairs: one by one, in pairs, and in lists."""
