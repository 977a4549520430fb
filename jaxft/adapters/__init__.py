"""Adapters: methods that add trained parts to a model's activations, through its sites."""

from jaxft.adapters.bottleneck import Parallel, Sequential, bottleneck, mam, merge_into_mlp
from jaxft.adapters.deep_prompt import Overwrite, deep_prompt
from jaxft.adapters.head_offsets import head_offsets, head_scales, head_scores, merge_head_offsets, top_heads
from jaxft.adapters.output_adapter import init_output_adapter, output_adapter
from jaxft.adapters.prefix import (
    collapse_prefix,
    prefix,
    prefix_from_peft,
    prefix_from_tokens,
    prefix_to_peft,
)
from jaxft.adapters.protocol import Adapter, chain_adapters
from jaxft.adapters.side_network import SideModel, SideNetwork, average_views, pool_places, side_network
from jaxft.adapters.soft_prompt import p_tuning, random_prompt, soft_prompt, text_prompt, vocabulary_prompt
