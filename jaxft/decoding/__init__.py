"""Decoding: sampling filters and generation."""

from jaxft.decoding.generate import Generated, generate
from jaxft.decoding.sampling import min_p, sample, top_k, top_p
