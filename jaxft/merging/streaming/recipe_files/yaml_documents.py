"""YAML from people and the net: no key twice, nothing that contains itself, no more of it than a merge can mean."""

from typing import Any

# Configurations nest five deep and have some thousand values.
_DEPTH, _VALUES = 32, 100_000


def read_yaml(text: str) -> list[Any]:
  """The documents of a YAML text.

  Raises:
    ValueError: it is not valid YAML, has a key twice in one mapping, nests deeper than a configuration can, holds an
      alias of what the alias is in, or has more values than a configuration can once its aliases are written out.
  """
  import yaml

  class Loader(yaml.SafeLoader):
    """Of two values for one key the library keeps the last, in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
      node, lines = super().compose_mapping_node(anchor), {}
      for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
          line = key.start_mark.line + 1
          if (key.tag, key.value) in lines:
            raise ValueError(f"the key {key.value!r} occurs twice in one mapping, in lines "
                             f"{lines[key.tag, key.value]} and {line}")
          lines[key.tag, key.value] = line
      return node

  try:
    _check_size(yaml.parse(text, Loader))
    return list(yaml.load_all(text, Loader))
  except (yaml.YAMLError, RecursionError) as e:
    raise ValueError(f"not valid YAML: {' '.join(str(e).split())}") from None


def _check_size(events: Any) -> None:
  """Counts the values of a stream with its aliases written out, before any are; the stream is read no further."""
  import yaml

  anchored: dict[str, int] = {}  # anchor -> the values below it
  opened: list[tuple[str | None, int]] = []  # the anchors of what is open, and how many values came before
  count = 0
  for event in events:
    if isinstance(event, yaml.DocumentStartEvent):
      anchored = {}
    elif isinstance(event, yaml.AliasEvent):
      if event.anchor in [anchor for anchor, _ in opened]:
        raise ValueError(f"the alias *{event.anchor} in line {event.start_mark.line + 1} contains itself")
      count += anchored.get(event.anchor, 1)
    elif isinstance(event, yaml.ScalarEvent):
      count += 1
      if event.anchor is not None:
        anchored[event.anchor] = 1
    elif isinstance(event, yaml.CollectionStartEvent):
      opened.append((event.anchor, count))
      count += 1
      if len(opened) > _DEPTH:
        raise ValueError(f"line {event.start_mark.line + 1} nests more than {_DEPTH} deep, which no configuration does")
    elif isinstance(event, yaml.CollectionEndEvent):
      anchor, before = opened.pop()
      if anchor is not None:
        anchored[anchor] = count - before
    if count > _VALUES:
      raise ValueError(f"there are more than {_VALUES} values once the aliases are written out")
