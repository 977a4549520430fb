"""Tokenization and chat templates against transformers, on real tokenizers."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxft import data
from jaxft.formats import fetch
from tests.parity.libraries import library

transformers = library("transformers")

TEXTS = [
  "A short one.", "naïve 你好 🙂  two  spaces\n\tand a tab", "word " * 60, "def f(x: int = 3) -> str: return 'x'"]
CHATS = [
  [{"role": "user", "content": "Hi, how are you?"}, {"role": "assistant", "content": "Fine."}],
  [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve 你好 🙂?"},
    {"role": "assistant", "content": "Yes.\n\nNo. "}, {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "<tag> & 'quotes'"},
  ],
]


def both(preset):
  folder = str(fetch(preset))
  return Tokenizer.from_file(f"{folder}/tokenizer.json"), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("length", [16, 32, 128])
def test_texts_and_their_truncation(length):
  ours, theirs = both("minilm-l6")
  got = data.tokenize_texts(TEXTS, ours, lengths=length)
  want = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)
  np.testing.assert_array_equal(got["ids"], want["input_ids"])
  np.testing.assert_array_equal(got["mask"], want["attention_mask"])


@pytest.mark.parametrize("messages", CHATS)
def test_chats(messages):
  ours, theirs = both("smollm2-135m")
  template = theirs.chat_template
  assert template
  for prompt in (False, True):
    got = data.render_chat(messages, template, add_generation_prompt=prompt)
    assert got == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
  out = data.tokenize_chats([{"messages": messages}], ours, template, lengths=128)
  ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
  assert out["ids"][0][out["mask"][0] == 1].tolist() == list(ids)
  learned = theirs.decode(out["ids"][0][out["loss_mask"][0] == 1], skip_special_tokens=False)
  # The template is what puts white space around a turn's content; what is learned is the turn and its end mark.
  assert learned == "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
