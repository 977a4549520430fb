"""Attention: products of queries and keys, masks, and how positions enter: by rotation or by distance."""

from jaxft.models.attention.disentangled import Disentangled, bias_and_scale, disentangled_scores, signed_buckets
from jaxft.models.attention.dot_product import attend, packed_positions, same_segment
from jaxft.models.attention.relative import relative_buckets
from jaxft.models.attention.ring import ring_attend
from jaxft.models.attention.rope import Rotation, rotate, rotation, wavelengths, with_rope_base
