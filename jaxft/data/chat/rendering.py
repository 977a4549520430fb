"""Conversations as one text, by the chat template that a checkpoint ships."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from jaxft.data.tokenization import Lengths, Tokens, tokenize_spans
from jaxft.signatures import explain_errors


class Rendered(NamedTuple):
  """A conversation's text, and the character spans (start, end) of what the assistant is to produce."""

  text: str
  spans: tuple[tuple[int, int], ...]


@explain_errors
def render_chat(
    messages: Sequence[Mapping[str, Any]], template: str, *, add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
  """The text of a conversation.

  The template runs in a sandbox: it can neither change its arguments nor reach Python's internals, nor make more, nor
  run longer, than a conversation needs.

  >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
  >>> template += "{% if add_generation_prompt %}<assistant>{% endif %}"
  >>> render_chat([{"role": "user", "content": "Hi"}], template, add_generation_prompt=True)
  '<user>Hi</><assistant>'

  Args:
    messages: dicts with `role` and `content`.
    template: Jinja, as in a checkpoint's `tokenizer_config.json`.
    add_generation_prompt: end with the opening of the assistant's next turn.
    **variables: others that the template reads, as `bos_token`, `eos_token` or `tools`.

  Raises:
    ValueError: the template is broken, refuses the conversation, or makes or does too much.
  """
  import jinja2  # imported where it is used: most data need none

  from jaxft.data.chat.template import compile_template

  render = compile_template(template)
  turns = [dict(message) for message in messages]
  try:
    return render({"messages": turns, "add_generation_prompt": add_generation_prompt, **variables})
  except jinja2.TemplateError as e:
    raise ValueError(f"the chat template refuses this conversation: {e}") from None
  except Exception as e:  # whatever somebody else's template divides by, indexes or calls
    raise ValueError(f"the chat template fails at this conversation: {type(e).__name__}: {e}") from None


@explain_errors
def render_with_spans(messages: Sequence[Mapping[str, Any]], template: str, **variables: Any) -> Rendered:
  """The text of a conversation with the spans of the assistant's turns, found without the template's help.

  A turn's span begins where the text of the messages before it, with the opening of the assistant's turn, ends: there
  generation starts. It ends after the end-of-turn mark, without the white space that follows: there generation stops.

  >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
  >>> template += "{% if add_generation_prompt %}<assistant>{% endif %}"
  >>> messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
  >>> text, spans = render_with_spans(messages, template)
  >>> text, [text[start:end] for start, end in spans]  # what is to be learned
  ('<user>Hi</><assistant>Hello</>', ['Hello</>'])

  Args:
    messages, template, **variables: see `render_chat`.

  Raises:
    ValueError: a message has no role or, without `tool_calls`, no content, or its role is "assistant" but for case and
      spaces, so that its turn would not be learnt; the template renders an earlier message differently once later ones
      follow, so that no span is sure; or it has no such start or end: it ignores `add_generation_prompt` and prints a
      header that the assistant would learn to write, or it closes the turn with nothing of its own (the next turn's
      mark does, or one that is printed later), so that the assistant would never learn to stop.
  """
  for i, message in enumerate(messages):
    _check_message(i, message)
  text = render_chat(messages, template, **variables)
  spans = []
  for i, message in enumerate(messages):
    if message["role"] == "assistant":
      before = render_chat(messages[:i], template, add_generation_prompt=True, **variables)
      upto = render_chat(messages[: i + 1], template, **variables)
      if not (upto.startswith(before) and text.startswith(upto)):
        raise ValueError(
          f"the chat template gives no sure span of the assistant's turn messages[{i}]: what it renders for the "
          "messages before is not how it renders them in the whole conversation"
        )
      _check_turn(messages[:i], before, template, variables)
      spans.append((len(before), len(upto.rstrip())))
  return Rendered(text, tuple(spans))


def _check_message(i: int, message: Mapping[str, Any]) -> None:
  """Refuses what a template prints as `None` or as nothing, or what it takes for no turn of the assistant."""
  role = message.get("role")
  if not isinstance(role, str) or role != "assistant" and role.strip().lower() == "assistant":
    raise ValueError(f"messages[{i}] must have a role such as 'user' or 'assistant'; got {role!r}")
  if message.get("content") is None and not message.get("tool_calls"):
    raise ValueError(f"messages[{i}] must have content (or tool_calls); got None, which templates print as a word")


def _check_turn(
    earlier: Sequence[Mapping[str, Any]], before: str, template: str, variables: Mapping[str, Any]
) -> None:
  """Refuses a template whose turn of the assistant has a header outside the generation prompt, or no end mark."""
  turns = [
    render_chat([*earlier, {"role": "assistant", "content": content}], template, **variables) for content in ("x", "y")
  ]
  # What two answers that share no character have in common is the template's own.
  start, end = os.path.commonprefix(turns), os.path.commonprefix([turn[::-1] for turn in turns])[::-1]
  where = f"the assistant's turn messages[{len(earlier)}]"
  header = start[len(before):]
  if header.strip() and before == render_chat(earlier, template, **variables):
    raise ValueError(
      f"the chat template ignores add_generation_prompt: it opens {where} with {header!r} itself, which the assistant "
      "would learn to write; give a template that prints it for add_generation_prompt"
    )
  if not end.strip():
    raise ValueError(
      f"the chat template closes {where} with {end!r}, no mark of its own, so that the assistant would never learn to "
      "stop; give a template that prints the end mark after each of its turns, whatever follows"
    )


@explain_errors
def tokenize_chats(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, template: str, *, lengths: Lengths, pad_id: int = 0,
    **variables: Any,
) -> Tokens:
  """Conversations as `ids`, `mask` and `loss_mask`, int32 [batch, length]; the loss is on the assistant's turns.

  A long conversation loses its end, and with it the turns there.

  >>> from tokenizers import models, pre_tokenizers
  >>> numbers = {"?": 0, "]": 1, "user": 2, "assistant": 3, "hi": 4, "yes": 5}
  >>> tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> template = "{% for m in messages %}{{ m.role }} {{ m.content }} ] {% endfor %}"
  >>> template += "{% if add_generation_prompt %}assistant {% endif %}"
  >>> messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
  >>> tokens = tokenize_chats([{"messages": messages}], tokenizer, template, lengths=8)
  >>> tokens["ids"], tokens["loss_mask"]
  (array([[2, 4, 1, 3, 5, 1, 0, 0]], dtype=int32), array([[0, 0, 0, 0, 1, 1, 0, 0]], dtype=int32))

  Args:
    records: dicts with `messages`.
    tokenizer, lengths, pad_id: as in `jaxft.data.tokenize_texts`.
    template, **variables: as in `render_chat`.
  """
  rendered = [render_with_spans(record["messages"], template, **variables) for record in records]
  return tokenize_spans(
    [r.text for r in rendered], [r.spans for r in rendered], tokenizer, lengths=lengths, pad_id=pad_id
  )
