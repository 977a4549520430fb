"""Optimizers: rates by depth and group, decay towards the pretrained weights, Adam without its bias correction."""

from jaxft.optimizers.agreement import agreement, agreement_dropout
from jaxft.optimizers.bert_adam import scale_by_bert_adam
from jaxft.optimizers.decay import decay_to_reference
from jaxft.optimizers.rates import layerwise_decay, lora_plus, scale_updates
