"""Formats: pretrained models by name or path, and the files of safetensors, Hugging Face, GGUF and PEFT in and out."""

from jaxft.deferred import defer

__all__ = defer(__name__, {
    "huggingface": ("load_directory", "save_directory"),
    "presets": ("fetch",),
    "pretrained": ("Pretrained", "load"),
    "peft_files": (
        "LoadedAdapter", "load_peft", "load_peft_prompt", "peft_frequencies", "save_peft", "save_peft_prompt"),
})
