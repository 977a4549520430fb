"""Models as plain functions over a nested dict of params; `jaxft.formats.load` fills it from a checkpoint."""

from jaxft.deferred import defer

__all__ = defer(__name__, {
    "decoder": ("DecoderConfig",),
    "encoder": ("EncoderConfig",),
    "encoder_decoder": (),
    "config.encoder_decoder": ("EncoderDecoderConfig",),
    "vision": ("VisionConfig",),
    "efficientnet": ("EfficientNetConfig",),
    "dual_encoder": (),
    "clip": (),
    "config.clip": ("ClipConfig", "ClipTextConfig"),
    "captioner": (),
    "pixels": (),
    "sites": (),
    "linearize": ("linearize",),
    "heads": (),
    "heads.pooling": (),
    "heads.experts": ("route", "run_experts", "run_routed", "split_experts"),
    "heads.reward": (
        "aggregate_experts", "init_aggregator", "init_scalar_head", "last_state", "reward_head", "value_head"),
    "heads.simplex": ("simplex_weights",),
})
