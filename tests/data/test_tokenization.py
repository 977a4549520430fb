"""Tokenization to fixed lengths: masks, truncation on the documented side, and what of a chat is learned."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxft import data
from jaxft.formats import fetch

CHATML = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def bert():
  return Tokenizer.from_file(str(fetch("minilm-l6") / "tokenizer.json"))


@pytest.fixture(scope="module")
def llama():
  """A byte-level tokenizer whose special tokens are written out in the text."""
  return Tokenizer.from_file(str(fetch("smollm2-135m") / "tokenizer.json"))


def test_texts_take_the_smallest_length_that_fits(bert):
  for words, length in ((2, 8), (6, 8), (7, 16), (14, 16), (40, 16)):
    out = data.tokenize_texts(["a", "the " * words], bert, lengths=(8, 16))
    assert out["ids"].shape == out["mask"].shape == (2, length)
    assert out["ids"].dtype == out["mask"].dtype == np.int32
    assert out["mask"].sum(1).tolist() == [3, min(words + 2, 16)]


def test_truncation_keeps_start_and_special_tokens(bert):
  text = "one two three four five six seven eight"
  whole = data.tokenize_texts([text], bert, lengths=32)["ids"][0]
  cut = data.tokenize_texts([text], bert, lengths=6)["ids"][0]
  cls, sep = bert.token_to_id("[CLS]"), bert.token_to_id("[SEP]")
  assert cut.tolist() == [cls, *whole[1:5], sep]
  assert bert.truncation is not None and bert.padding is not None  # the given tokenizer is as it was


def test_truncation_by_the_tokenizers_own_settings_is_not_used(bert):
  assert bert.truncation["max_length"] == 128
  assert data.tokenize_texts(["word " * 300], bert, lengths=512)["mask"].sum() == 302


def test_pairs_and_triples(bert):
  records = [{"anchor": "a b", "positive": "c " * 20, "negative": "d"}] * 2
  out = data.tokenize_pairs(records, bert, lengths=(8, 32), keys=("anchor", "positive", "negative"))
  assert {key: value["ids"].shape for key, value in out.items()} == {
    "anchor": (2, 8), "positive": (2, 32), "negative": (2, 8)}


def test_completions_learn_the_completion_alone(llama):
  eos = llama.token_to_id("<|im_end|>")
  records = [{"prompt": "Question: 2+2?\nAnswer:", "completion": " 4"}, {"prompt": "", "completion": "Hello there"}]
  out = data.tokenize_completions(records, llama, lengths=(8, 16, 32), eos_id=eos)
  for row, record in enumerate(records):
    learned = out["ids"][row][out["loss_mask"][row] == 1]
    assert llama.decode(learned.tolist(), skip_special_tokens=False) == record["completion"] + "<|im_end|>"
    real = out["ids"][row][out["mask"][row] == 1]
    text = llama.decode(real.tolist(), skip_special_tokens=False)
    assert text == record["prompt"] + record["completion"] + "<|im_end|>"
    assert (out["loss_mask"][row] <= out["mask"][row]).all()


def test_long_prompts_lose_their_start_and_long_completions_their_end(llama):
  eos = llama.token_to_id("<|im_end|>")
  ids = lambda text: llama.encode(text, add_special_tokens=False).ids
  prompt, completion = "one two three four five six", " seven eight"
  out = data.tokenize_completions([{"prompt": prompt, "completion": completion}], llama, lengths=5, eos_id=eos)
  assert out["ids"][0].tolist() == [*ids(prompt)[-2:], *ids(completion), eos]
  assert out["loss_mask"][0].tolist() == [0, 0, 1, 1, 1]
  out = data.tokenize_completions([{"prompt": prompt, "completion": completion}], llama, lengths=2, eos_id=eos)
  assert out["ids"][0].tolist() == ids(completion)
  assert out["loss_mask"][0].tolist() == [1, 1]


def test_preferences_share_their_prompt(llama):
  record = {"prompt": "Say hi.", "chosen": " Hi!", "rejected": " No, I will not."}
  out = data.tokenize_preferences([record], llama, lengths=16, eos_id=None)
  text = lambda key: llama.decode(out[key]["ids"][0][out[key]["loss_mask"][0] == 1].tolist())
  assert (text("chosen"), text("rejected")) == (" Hi!", " No, I will not.")


CHAT = [
  {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi, how are you?"},
  {"role": "assistant", "content": "Fine: naïve 你好 🙂."}, {"role": "user", "content": "assistant?"},
  {"role": "assistant", "content": "Yes."},
]


def test_chats_learn_the_assistants_turns_to_their_end_mark(llama):
  out = data.tokenize_chats([{"messages": CHAT}, {"messages": CHAT[:3]}], llama, CHATML, lengths=(64, 128))
  learned = lambda row: llama.decode(out["ids"][row][out["loss_mask"][row] == 1].tolist(), skip_special_tokens=False)
  assert learned(0) == "Fine: naïve 你好 🙂.<|im_end|>Yes.<|im_end|>"
  assert learned(1) == "Fine: naïve 你好 🙂.<|im_end|>"
  text = llama.decode(out["ids"][0][out["mask"][0] == 1].tolist(), skip_special_tokens=False)
  assert text == data.render_chat(CHAT, CHATML)


def test_long_chats_lose_their_end(llama):
  whole = data.tokenize_chats([{"messages": CHAT}], llama, CHATML, lengths=128)
  cut = data.tokenize_chats([{"messages": CHAT}], llama, CHATML, lengths=20)
  for key in ("ids", "mask", "loss_mask"):
    np.testing.assert_array_equal(cut[key], whole[key][:, :20])


def test_templates_cannot_reach_out():
  with pytest.raises(ValueError, match="refuses this conversation: access to attribute '__class__'"):
    data.render_chat(CHAT, "{{ messages.__class__.__mro__ }}")
  with pytest.raises(ValueError, match="refuses this conversation"):
    data.render_chat(CHAT, "{{ messages.append(1) }}")
  with pytest.raises(ValueError, match="refuses this conversation: no system turns"):
    data.render_chat(CHAT, "{{ raise_exception('no system turns') }}")
  with pytest.raises(ValueError, match="template must be a Jinja chat template"):
    data.render_chat(CHAT, "{% for %}")
  for broken in ("{{ 1/0 }}", "{{ messages[9].content.x }}", "{{ 'a' + 1 }}", "{{ range(10**9) }}"):
    with pytest.raises(ValueError, match="the chat template (fails at|refuses) this conversation"):
      data.render_chat(CHAT, broken)


def test_a_template_that_rewrites_earlier_turns_is_refused():
  last_only = "{% for m in messages %}{{ '<' + m.role + '>' }}{{ m.content if loop.last else '...' }}{% endfor %}"
  with pytest.raises(ValueError, match=r"no sure span of the assistant's turn messages\[2\]"):
    data.render_with_spans(CHAT, last_only)


@pytest.mark.parametrize(("message", "error"), [
  ({"role": "assistant", "content": None}, r"messages\[1\] must have content \(or tool_calls\); got None"),
  ({"role": "assistant"}, r"messages\[1\] must have content \(or tool_calls\); got None"),
  ({"role": "user", "content": None}, r"messages\[1\] must have content"),
  ({"role": "Assistant", "content": "x"}, r"messages\[1\] must have a role .*; got 'Assistant'"),
  ({"content": "x"}, r"messages\[1\] must have a role .*; got None"),
])
def test_what_a_template_would_print_as_none_or_pass_over_is_refused(message, error):
  with pytest.raises(ValueError, match=error):
    data.render_with_spans([CHAT[1], message], CHATML)


def test_a_turn_that_calls_tools_may_have_no_content():
  template = CHATML.replace("message['content']", "(message['content'] or message['tool_calls'])")
  text, ((start, end),) = data.render_with_spans(
    [CHAT[1], {"role": "assistant", "content": None, "tool_calls": "call()"}], template)
  assert text[start:end] == "call()<|im_end|>"


def turns(open_, close, prompt=True):
  """A template of marks around each turn; `close` may read the loop."""
  return (
    "{% for m in messages %}" + open_ + "{{ m.content }}" + close + "{% endfor %}"
    + ("{% if add_generation_prompt %}<assistant>{% endif %}" if prompt else "")
  )


@pytest.mark.parametrize(("open_", "close"), [
  ("<{{ m.role }}>", ""),
  ("<{{ m.role }}>", "\n"),
  ("{{ '<end>' if m.role == 'user' and not loop.first }}<{{ m.role }}>", ""),
  ("<{{ m.role }}>", "{{ '<end>' if m.role == 'assistant' and not loop.last }}"),
], ids=["next role", "white space", "before the user's turn", "unless it is the last"])
def test_a_template_without_an_end_mark_is_refused(open_, close):
  with pytest.raises(ValueError, match=r"closes the assistant's turn messages\[2\] with '(\\n)?', no mark of its own"):
    data.render_with_spans(CHAT, turns(open_, close))


def test_a_template_that_ignores_the_generation_prompt_is_refused_where_it_opens_turns():
  with pytest.raises(ValueError, match=r"opens the assistant's turn messages\[2\] with '<assistant>' itself"):
    data.render_with_spans(CHAT, turns("<{{ m.role }}>", "<end>", prompt=False))


def test_turns_that_need_no_header_and_marks_that_every_turn_has_are_learned():
  # As Mistral's: the user's turn is closed, the assistant's follows at once and needs no generation prompt.
  opening, closing = "{{ ' ' if assistant else '[INST] ' }}", "{{ '</s>' if assistant else ' [/INST]' }}"
  mistral = turns("{% set assistant = m.role == 'assistant' %}" + opening, closing, prompt=False)
  text, spans = data.render_with_spans(CHAT, mistral)
  assert [text[start:end] for start, end in spans] == [" Fine: naïve 你好 🙂.</s>", " Yes.</s>"]
  # The next turn's mark is the end mark where it stands after every turn, whatever follows.
  closing = "<{{ 'user' if m.role == 'assistant' else 'assistant' }}>"
  text, spans = data.render_with_spans(CHAT, turns("", closing, prompt=False))
  assert [text[start:end] for start, end in spans] == ["Fine: naïve 你好 🙂.<user>", "Yes.<user>"]


@pytest.mark.parametrize(("call", "error", "message"), [
  (lambda t: data.tokenize_texts([], t, lengths=8), ValueError, "texts must hold at least one"),
  (lambda t: data.tokenize_texts([b"x"], t, lengths=8), TypeError, "texts must be str; got bytes"),
  (lambda t: data.tokenize_texts("xy", t, lengths=8), TypeError, "texts must be a sequence of str, .* the str 'xy'"),
  (lambda t: data.tokenize_texts(["x"], t, lengths=(8, 8)), ValueError, "in rising order"),
  (lambda t: data.tokenize_texts(["x"], t, lengths=2), ValueError, "leave room beside 2 special tokens"),
  (lambda t: data.tokenize_pairs([{"anchor": "x"}], t, lengths=8), ValueError, "must have the key 'positive'; got"),
  (lambda t: data.tokenize_texts(["x"], t, lengths=8, pad_id=-100), ValueError, "pad_id must be a token id.*got -100"),
  (lambda t: data.tokenize_completions([{"prompt": "x", "completion": "y"}], t, lengths=8, eos_id=-1), ValueError,
   "eos_id must be a token id.*got -1"),
])
def test_errors_name_the_argument(bert, call, error, message):
  with pytest.raises(error, match=message):
    call(bert)
