"""Which turns of a conversation with tools are worth imitating: those whose call did not fail."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxft.signatures import explain_errors

Message = Mapping[str, Any]

# By which a tool's reply is known as an error, compared in letters and digits alone: the source's list, in which
# "error" has what is longer in it.
ERRORS = (
    "error", "is not defined", "positional argument", "unexpected keyword", "not supported", "Invalid API call",
    "Object of type SerpResults is not JSON serializable", "slice indices must be integers or None")


class Turn(NamedTuple):
  """What is learned from one turn of the assistant.

  Attributes:
    context: the messages before it, failed turns included.
    target: its message, the only one that the loss counts.
  """

  context: tuple[Message, ...]
  target: Message


@explain_errors
def reports_error(reply: str, errors: Sequence[str] = ERRORS) -> bool:
  """Whether a tool's reply says that the call failed: it has one of the phrases, spaces and signs aside.

  >>> reports_error('{"error": "no such city"}'), reports_error("TypeError: unexpected keyword argument 'town'")
  (True, True)
  >>> reports_error('{"temperature": 21}')
  False

  Args:
    reply: what the tool answered.
    errors: phrases that mark one.

  Raises:
    ValueError: a phrase without a letter or digit, which any reply would have.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495). Their phrases for errors of several kinds are all marked by
  the word itself once signs are gone, as here.
  """
  bare = lambda text: re.sub(r"[\W_]", "", text).lower()
  for phrase in errors:
    if not bare(phrase):
      raise ValueError(f"errors must be phrases with letters or digits; got {phrase!r}")
  return any(bare(phrase) in bare(reply) for phrase in errors)


@explain_errors
def drop_failed_turns(
    conversation: Sequence[Message], is_error: Callable[[str], bool] = reports_error, *,
    tool_roles: Sequence[str] = ("tool", "function"),
) -> list[Turn]:
  """One example for each turn of the assistant that is worth learning; turns that failed stay in later contexts.

  The last message is always learned where it is the assistant's. Of the others those are that a tool answered, and
  without an error: the reply decides, so that nothing need be known of the right call.

  >>> say = lambda role, content: {"role": role, "content": content}
  >>> conversation = [say("user", "Rain in Oslo?"), say("assistant", "get_rain(town='Oslo')"),
  ...                 say("tool", "unexpected keyword argument 'town'"), say("assistant", "get_rain(city='Oslo')"),
  ...                 say("tool", "3 mm"), say("assistant", "3 mm.")]
  >>> [(len(turn.context), turn.target["content"]) for turn in drop_failed_turns(conversation)]
  [(3, "get_rain(city='Oslo')"), (5, '3 mm.')]

  Args:
    conversation: messages with a role and a content.
    is_error: whether a tool's reply reports a failure; `lambda reply: False` keeps every turn that a tool answered.
    tool_roles: roles of a tool's reply.

  Raises:
    ValueError: a message without a role or, where it is a tool's reply, without a content that is text.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495), which finds 17% of the calls of its data in error.
  """
  turns = []
  for i, message in enumerate(conversation):
    if not isinstance(message.get("role"), str):
      raise ValueError(f"conversation[{i}] must have a role; got {message!r:.200}")
    if message["role"] != "assistant":
      continue
    if i + 1 < len(conversation):
      reply = conversation[i + 1]
      if reply.get("role") not in tool_roles:
        continue
      if not isinstance(reply.get("content"), str):
        raise ValueError(f"conversation[{i + 1}] must have a content that is text; got {reply!r:.200}")
      if is_error(reply["content"]):
        continue
    turns.append(Turn(tuple(conversation[:i]), message))
  return turns
