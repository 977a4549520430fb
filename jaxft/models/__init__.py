"""Models as plain functions over a nested dict of params, and the checkpoint formats that fill it."""

from jaxft.deferred import defer

__all__ = defer(__name__, {
    "decoder": ("DecoderConfig",),
    "encoder": ("EncoderConfig",),
    "sites": (),
    "linearize": ("linearize",),
    "huggingface": ("load_directory", "save_directory"),
    "presets": ("fetch",),
    "pretrained": ("Pretrained", "load"),
})
