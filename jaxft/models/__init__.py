"""Models as plain functions over a nested dict of params, and the checkpoint formats that fill it."""

from jaxft.models import decoder, encoder, sites
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.huggingface import load_directory, save_directory
from jaxft.models.presets import fetch
from jaxft.models.pretrained import Pretrained, load
