"""Exchange of adapters with PEFT, the library of fine-tuning methods for PyTorch, through its files."""

from jaxft.formats.peft_files.frequencies import peft_frequencies
from jaxft.formats.peft_files.load import LoadedAdapter, load_peft
from jaxft.formats.peft_files.prompts import load_peft_prompt, save_peft_prompt
from jaxft.formats.peft_files.save import save_peft
