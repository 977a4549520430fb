"""Globs over the paths of leaves.

`*` stands for anything within one part of a path, `**` for any number of parts, `{a,b}` for either, `?` for one letter;
the whole `/`-joined path must match: `**/attention/{query,value}/kernel`.
"""

import re


def glob_to_regex(glob: str) -> re.Pattern[str]:
  """Compiles a path glob; see the module's docstring for its syntax.

  >>> bool(glob_to_regex("**/{query,value}/*").fullmatch("layers/0/query/kernel"))
  True
  """
  parts = re.split(r"(\*\*/|\*\*|\*|\?|\{[^{}]*\})", glob)
  rules = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
  out = []
  for part in parts:
    if part.startswith("{") and part.endswith("}"):
      out.append("(?:" + "|".join(re.escape(p) for p in part[1:-1].split(",")) + ")")
    else:
      out.append(rules.get(part, re.escape(part)))
  return re.compile("".join(out))
