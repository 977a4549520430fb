"""The low-rank family and the structured deltas."""

import jax
import jax.numpy as jnp

from jaxft.transforms import ParamTransform, chain, lora, quantize
from jaxft.transforms.low_rank.adalora import adalora
from jaxft.transforms.low_rank.corda import corda
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.low_rank.eva import eva_directions, from_directions
from jaxft.transforms.low_rank.loftq import loftq
from jaxft.transforms.low_rank.lora_ga import lora_ga
from jaxft.transforms.low_rank.mica import mica
from jaxft.transforms.low_rank.olora import olora
from jaxft.transforms.low_rank.pissa import pissa
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.low_rank.vera import vera
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.transforms.structured.lokr import lokr
from jaxft.transforms.structured.miss import miss
from jaxft.tree.choice import mask
from tests.contracts.transforms import KERNELS, Case


def from_statistics(make, statistics) -> ParamTransform:
  """A transform that needs statistics of the data, given some that the params decide."""
  chosen = lambda params: jax.tree.map(lambda flag, w: statistics(w) if flag else None, mask(KERNELS, params), params)
  split = lambda key, params: make(chosen(params)).split(key, params)
  join = lambda frozen, trainable: make({}).join(frozen, trainable)
  return ParamTransform(split, join)


def covariance(w):
  return jnp.matmul(w, jnp.swapaxes(w, -1, -2)).astype(jnp.float32) + jnp.eye(w.shape[-2])


def with_init(init):
  return lambda statistics: lora(KERNELS, rank=8, init=init, statistics=statistics)


def eva(covariances):
  bases = eva_directions(covariances, rank=6, rho=1.5) if covariances else {}
  return lora(KERNELS, rank=9, alpha=9, init=from_directions, statistics=bases)


CASES = [
    Case("pissa", lora(KERNELS, rank=8, init=pissa), flops=4.3, starts_within=6e-8),
    Case("olora", lora(KERNELS, rank=8, alpha=8, init=olora), flops=4.3, variant=True, starts_within=6e-8),
    Case("mica", lora(KERNELS, rank=8, init=mica, train="a"), flops=4.1),
    Case("lora_fa", lora(KERNELS, rank=8, alpha=8, train="b"), flops=4.1, variant=True),
    Case("loftq", lora(KERNELS, rank=8, init=loftq(block=16, rounds=2)), flops=4.3, starts_within=0.08),
    Case("corda_preview", from_statistics(with_init(corda("preview")), covariance), flops=4.3, starts_within=6e-8),
    Case("corda_preserve", from_statistics(with_init(corda("preserve")), covariance), flops=4.3, variant=True,
         starts_within=6e-8),
    Case("lora_ga", from_statistics(with_init(lora_ga()), jnp.sin), flops=4.3, starts_within=6e-8),
    Case("eva", from_statistics(eva, covariance), flops=4.3),
    Case("dora", dora(KERNELS, rank=8), flops=4.3),
    Case("dora_dropout", dora(KERNELS, rank=8, dropout=0.1), flops=4.4, variant=True),
    Case("qdora", chain(quantize(KERNELS, format="nf4", block=16), dora(KERNELS, rank=8)), flops=4.3, variant=True,
         starts_within=0.12),
    Case("adalora", adalora(KERNELS, rank=8), flops=4.3),
    Case("vera", vera(KERNELS, rank=16), flops=4.3),
    Case("loha", loha(KERNELS, rank=4), flops=4.4),
    Case("loha_formed", loha(KERNELS, rank=16), flops=6.45, variant=True),
    Case("hira", hira(KERNELS, rank=8), flops=6.05),
    Case("lokr", lokr(KERNELS), flops=4.5),
    Case("lokr_rank", lokr(KERNELS, rank=2, factor=4), flops=4.3, variant=True),
    Case("delora", delora(KERNELS, rank=8, strength=0.5), flops=4.3),
    Case("miss", miss(KERNELS, rank=8), flops=4.1),
    Case("fourier_ft", fourier_ft(KERNELS, frequencies=5), flops=4.3),
    Case("fourier_ft_formed", fourier_ft(KERNELS, frequencies=60), flops=7.3, variant=True),
    Case("c3a", c3a(KERNELS, block=16), flops=4.4),
    Case("vb_lora", vb_lora(KERNELS, rank=4, vectors=12, length=16), flops=4.1, starts_within=1e-3),
    Case("rand_lora", rand_lora(KERNELS, rank=8, alpha=8.0), flops=8.9, counted_apart=0.9),
]
