"""Globs over the paths of leaves.

`*` stands for anything within one part of a path, `**` for any number of parts, `{a,b}` for either, `?` for one letter;
the whole `/`-joined path must match: `**/attention/{query,value}/kernel`. What stands in braces is a glob itself, with
braces of its own if need be: `**/{Dense_*,{encoder,decoder}/**/out}/kernel`.
"""

import re

_RULES = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def glob_to_regex(glob: str) -> re.Pattern[str]:
  """Compiles a path glob; see the module's docstring for its syntax.

  >>> bool(glob_to_regex("**/{query,value}/*").fullmatch("layers/0/query/kernel"))
  True
  >>> bool(glob_to_regex("**/{Dense_*,head}/kernel").fullmatch("encoder/Dense_0/kernel"))
  True

  Raises:
    ValueError: a brace is not opened or not closed.
  """
  out, opened, at = [], [], 0
  for part in re.split(r"(\*\*/|\*\*|\*|\?|[{},])", glob):
    if part == "{":
      opened.append(at)
      out.append("(?:")
    elif part == "}":
      if not opened:
        raise ValueError(_unbalanced(glob, at))
      opened.pop()
      out.append(")")
    elif part == "," and opened:
      out.append("|")
    else:
      out.append(_RULES.get(part, re.escape(part)))
    at += len(part)
  if opened:
    raise ValueError(_unbalanced(glob, opened[-1]))
  return re.compile("".join(out))


def _unbalanced(glob: str, at: int) -> str:
  other = "closes" if glob[at] == "{" else "opens"
  return f"a glob must have its braces in pairs; got {glob!r}, in which nothing {other} that of {glob[at:]!r}"
