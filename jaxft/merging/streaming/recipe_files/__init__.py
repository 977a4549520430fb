"""Merge configurations in the format of mergekit, read and checked."""
