"""What the examples of a run ask of the model."""

import pytest
from tokenizers import Tokenizer, models

from jaxft.formats.pretrained import Pretrained
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.recipes.examples import language_collate, pair_collate, special_tokens

ENCODER = EncoderConfig(vocab_size=50, dim=16, num_layers=2, num_heads=2, mlp_dim=32, max_length=64)
DECODER = DecoderConfig(
    vocab_size=50, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, bos_id=1, eos_id=49)
WORDS = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))


def model(config, tokenizer=WORDS):
  return Pretrained("tried", {}, config, tokenizer, None, 64)


def test_a_special_token_that_the_tokenizer_lacks_is_none_of_a_template():
  assert special_tokens(model(DECODER)) == {"bos_token": "w1"}


@pytest.mark.parametrize("call, message", [
    (lambda: language_collate(model(ENCODER), {"text": "a"}, max_length=8),
     "model must be a decoder with a tokenizer; tried is an encoder with one"),
    (lambda: language_collate(model(DECODER, None), {"text": "a"}, max_length=8), "tried is a decoder without one"),
    (lambda: pair_collate(model(DECODER), ("anchor", "positive"), max_length=8), "model must be an encoder with"),
    (lambda: model(ENCODER, None).text_encoder("guide"), "guide must be an encoder with a tokenizer; .* without one"),
])
def test_errors_name_the_argument_and_the_model(call, message):
  with pytest.raises(ValueError, match=message):
    call()
