"""LN tuning: training the scales and biases of the norms alone."""

from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.whole.freeze import train
from jaxft.tree.choice import Choice


@explain_errors
def norm_tuning(select: Choice = "**/{attention_norm,mlp_norm,norm}/*") -> ParamTransform:
  """LN tuning: trains the norms, scales and biases, and freezes all else; 4 FLOPs per parameter and token.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> params = {"norm": {"scale": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 3))}}
  >>> norm_tuning().split(jax.random.key(0), params)[1]
  {'head': {'kernel': None}, 'norm': {'scale': Array([1., 1.], dtype=float32)}}

  Args:
    select: a choice of the leaves of norms. The default takes all norms of this library's decoders and encoders:
      those around attention and MLP, a decoder's last one, the one over an encoder's embeddings.
      `**/{attention_norm,mlp_norm}/*` are those of the layers alone.

  Raises (from `split`):
    ValueError: a glob matches nothing.

  Source: Zhao et al. 2023 (arXiv 2312.11420), of which this is "LayerNorm-simple": the other settings there also train
  the connector, the embeddings and the head. RMS norms are tuned in the same way.
  """
  return train(select)
