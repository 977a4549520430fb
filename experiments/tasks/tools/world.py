"""Requests in words, and the calls that serve them: nineteen functions of BFCL's simulated APIs, many alike in name.

Names, parameters and types are BFCL's; the requests are from templates, three wordings to a tool. A call is spelled in
tokens: the parts of a name as its underscores cut it, parameters, signs and values, `get _tweet ( tweet_id = 17 )`.

The agent whose conversations are the training data fails at the third wording of a tool in a fixed way: it takes a tool
of a similar name, makes one up, or invents or forgets a parameter. The tool's reply says so, and it corrects itself.

A hard request gives a number as a sum, `tweet 17 plus 5`, which the call must have worked out.
"""

import functools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.data import ToolCall, parse_call, source
from jaxft.data.tools.turns import Message
from jaxft.seal import check_open

# Of each tool the wordings, the awkward one last; braces hold the parameters that its calls give.
WORDINGS = {
    "get_tweet": ("show tweet {tweet_id}", "read me tweet {tweet_id} please", "what does tweet {tweet_id} say"),
    "get_tweet_comments": (
        "show comments on tweet {tweet_id}", "read the replies to tweet {tweet_id}",
        "what do people answer to tweet {tweet_id}"),
    "get_user_tweets": ("show tweets of {username}", "list what {username} tweeted", "what did {username} post lately"),
    "get_user_stats": ("show followers of {username}", "how popular is {username}", "give the numbers of {username}"),
    "get_user_tickets": ("list my {status} tickets", "which tickets are {status}", "show what is still {status}"),
    "get_user_id": ("find the id of {user}", "which id has {user}", "what number is {user}"),
    "get_ticket": ("show ticket {ticket_id}", "open ticket {ticket_id} for me", "what is ticket {ticket_id} about"),
    "close_ticket": (
        "close ticket {ticket_id}", "ticket {ticket_id} can be closed", "we are done with ticket {ticket_id}"),
    "resolve_ticket": (
        "resolve ticket {ticket_id} as {resolution}", "mark ticket {ticket_id} as {resolution}",
        "ticket {ticket_id} was {resolution}"),
    "get_order_details": ("show order {order_id}", "details of order {order_id}", "what is in order {order_id}"),
    "cancel_order": ("cancel order {order_id}", "stop order {order_id}", "i do not want order {order_id}"),
    "get_stock_info": ("show stock {symbol}", "how is {symbol} doing", "what is {symbol} worth"),
    "get_symbol_by_name": ("symbol of {name}", "which symbol has {name}", "how is {name} traded"),
    "add_to_watchlist": ("watch {stock}", "add {stock} to my list", "keep an eye on {stock}"),
    "remove_stock_from_watchlist": (
        "stop watching {symbol}", "take {symbol} off my list", "i do not care about {symbol} now"),
    "search_tweets": ("search tweets for {keyword}", "find tweets about {keyword}", "who talks about {keyword}"),
    "search_messages": (
        "search messages for {keyword}", "find mail about {keyword}", "did anyone write me about {keyword}"),
    "estimate_distance": (
        "how far is {cityA} from {cityB}", "distance between {cityA} and {cityB}", "is {cityA} close to {cityB}"),
    "get_zipcode_based_on_city": ("zip code of {city}", "which zip code has {city}", "where do i send mail in {city}"),
}
_PEOPLE = ("alice", "bilal", "chen", "dora", "emre", "farah", "goran", "hana", "ines", "jonas", "kofi", "lena")
_SYMBOLS = ("AAPL", "AMZN", "GOOG", "IBM", "INTC", "META", "MSFT", "NVDA", "ORCL", "TSLA")
_CITIES = ("Bergen", "Cairo", "Delhi", "Lima", "Lyon", "Osaka", "Oslo", "Porto", "Quito", "Turin")
VALUES = {
    "username": _PEOPLE, "user": _PEOPLE, "symbol": _SYMBOLS, "stock": _SYMBOLS, "city": _CITIES, "cityA": _CITIES,
    "cityB": _CITIES, "status": ("open", "closed", "pending", "urgent", "new", "late", "blocked", "lost"),
    "resolution": ("fixed", "rejected", "moot"),
    "name": ("apple", "amazon", "google", "intel", "nvidia", "oracle", "tesla", "meta"),
    "keyword": ("chess", "coffee", "football", "jazz", "maps", "poetry", "rain", "trains", "votes", "yoga")}
NUMBERS = range(10, 40)  # what any other parameter takes
ADDENDS = range(1, 4)
AWKWARD = 2  # the wording at which the agent fails
MISTAKES = ("similar tool", "invented tool", "invented parameter", "forgotten parameter")
ASK, REPLY = ">", "!"  # before a call, and before a tool's reply


class Request(NamedTuple):
  """What a user asks, and the call that serves it."""

  text: str
  gold: ToolCall
  wording: int
  hard: bool


@functools.cache
def schemas() -> Mapping[str, tuple[str, ...]]:
  """The parameters of each of the tools."""
  rows = {row["name"]: json.loads(row["function"]) for row in source("bfcl/tools", "train")}
  return {name: tuple(rows[name]["parameters"]["properties"]) for name in WORDINGS}


def name_tokens(name: str) -> list[str]:
  """The parts of a tool's name: `get`, `_user`, `_id`."""
  return re.findall(r"_?[^_]+", name)


def call_tokens(call: ToolCall) -> list[str]:
  """A call in tokens, which joined are its text."""
  found = [*name_tokens(call.name), "("]
  for i, (key, value) in enumerate(call.arguments.items()):
    found += [*([","] if i else []), key, "=", repr(value)]
  return [*found, ")"]


def spelled(call: ToolCall) -> str:
  """A call in tokens with spaces between, as the small decoder reads and writes it."""
  return " ".join(call_tokens(call))


def read_call(text: str) -> ToolCall | None:
  """The call that tokens with spaces between spell; None where they spell none."""
  return parse_call("".join(text.split()))


def split_of(text: str) -> str:
  """Which split a request belongs to: by its text, so that no two splits share one."""
  return {0: "test", 1: "test", 2: "validation", 3: "validation"}.get(zlib.crc32(text.encode()) % 10, "train")


def draw(rng: np.random.Generator, n: int, *, hard: float = 0.0) -> list[Request]:
  """Training requests, the tools in turn in random order; of those with a number a share is hard."""
  found: list[Request] = []
  while len(found) < n:
    for at in rng.permutation(len(WORDINGS)):
      found.append(_drawn(rng, list(WORDINGS)[at], "train", hard))
  return found[:n]


def held_out(split: str, n: int, *, hard: float = 0.0) -> list[Request]:
  """Different requests of a split, as evenly of all tools as they have them; the same ones always."""
  check_open(split)
  rng, found = np.random.default_rng(zlib.crc32(split.encode())), {}
  for _ in range(-(-n // len(WORDINGS)) * 4):
    for name in WORDINGS:
      request = _drawn(rng, name, split, hard)
      if len(found) < n:
        found.setdefault(request.text, request)
  return list(found.values())


def _drawn(rng: np.random.Generator, name: str, split: str, hard: float) -> Request:
  while True:
    request = _request(rng, name, hard)
    if split_of(request.text) == split:
      return request


def _request(rng: np.random.Generator, name: str, hard: float) -> Request:
  wording = int(rng.integers(len(WORDINGS[name])))
  template = WORDINGS[name][wording]
  words, arguments, summed = {}, {}, False
  for key in (key for key in schemas()[name] if f"{{{key}}}" in template):
    if key in VALUES:
      arguments[key] = words[key] = str(rng.choice(VALUES[key]))
      continue
    number = int(rng.choice(NUMBERS))
    arguments[key], words[key] = number, str(number)
    if rng.random() < hard:
      addend = int(rng.choice(ADDENDS))
      number = int(rng.choice(NUMBERS[: -ADDENDS[-1]]))
      arguments[key], words[key], summed = number + addend, f"{number} plus {addend}", True
  return Request(template.format(**words), ToolCall(name, arguments), wording, summed)


def wrong_call(request: Request) -> ToolCall:
  """What the agent calls where it fails: the tool decides how."""
  name, arguments = request.gold.name, dict(request.gold.arguments)
  known = schemas()
  kinds = MISTAKES if len(arguments) > 1 else MISTAKES[:3]
  kind = kinds[list(WORDINGS).index(name) % len(kinds)]
  if kind == "similar tool":
    parts = name_tokens(name)
    alike = [other for other in known if name_tokens(other)[0] == parts[0] and not set(arguments) <= set(known[other])]
    if alike:
      return ToolCall(alike[0], arguments)
    kind = "invented tool"
  if kind == "invented tool":
    invented = next(new for end in ("_id", "_info", "_stats") if (new := name_tokens(name)[0] + end) not in known)
    return ToolCall(invented, arguments)
  last = list(arguments)[-1]
  if kind == "forgotten parameter":
    return ToolCall(name, {key: value for key, value in arguments.items() if key != last})
  invented = next(key for key in ("keyword", "name", "user") if key not in known[name])
  return ToolCall(name, {invented if key == last else key: value for key, value in arguments.items()})


def reply(call: ToolCall, wanted: ToolCall) -> str:
  """What the tool answers: an error where there is none of the name, or where it cannot take the parameters."""
  known = schemas()
  if call.name not in known:
    return "NameError : it is not defined"
  if not set(call.arguments) <= set(known[call.name]):
    return "TypeError : unexpected keyword argument"
  if call.name == wanted.name and set(wanted.arguments) - set(call.arguments):
    return "TypeError : missing positional argument"
  return "done"


def conversation(request: Request, *, failing: bool) -> list[Message]:
  """A request served at once, or after a call that failed."""
  say = lambda role, content: {"role": role, "content": content}
  calls = [wrong_call(request)] if failing else []
  messages: list[Message] = [say("user", request.text)]
  for call in [*calls, request.gold]:
    messages += [say("assistant", spelled(call)), say("tool", reply(call, request.gold))]
  return messages[:-1]


def prompt_of(context: Sequence[Message]) -> str:
  """What the decoder reads before it answers."""
  sign = {"user": "", "assistant": f"{ASK} ", "tool": f"{REPLY} "}
  return " ".join(sign[message["role"]] + message["content"] for message in context) + f" {ASK}"


def all_texts() -> list[str]:
  """Texts that hold every token of the world."""
  words = [word for wordings in WORDINGS.values() for text in wordings for word in re.sub(r"\{\w+\}", "", text).split()]
  values: list[Any] = [value for some in VALUES.values() for value in some]
  numbers = [str(n) for n in (*ADDENDS, *NUMBERS)]
  names = [part for name in WORDINGS for part in name_tokens(name)]
  parameters = [key for keys in schemas().values() for key in keys]
  signs = ["(", ")", "=", ",", ASK, REPLY, "plus", "_id", "_info", "_stats"]
  errors = ["NameError : it is not defined", "TypeError : unexpected keyword argument missing positional", "done"]
  return [" ".join([*words, *values, *map(repr, values), *numbers, *names, *parameters, *signs, *errors])]
