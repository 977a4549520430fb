"""Data sets by name, and the way from their records to batches on a mesh."""

from jaxft.data.chat import Rendered, render_chat, render_with_spans, tokenize_chats
from jaxft.data.class_splits import BaseNovel, Session, base_to_novel, few_shot, sessions
from jaxft.data.collate import collate
from jaxft.data.demonstrations import retrieve_demonstrations
from jaxft.data.images import on_background
from jaxft.data.packing import pack, pack_texts
from jaxft.data.pipeline import (
  batch_indices,
  batches,
  evaluation_batches,
  mix,
  sharded,
  stream,
  to_global,
)
from jaxft.data.position import fingerprint, position, restore
from jaxft.data.prepare import Records, prepare
from jaxft.data.sources import builder, names, source
from jaxft.data.splits import near_duplicates, per_group_split
from jaxft.data.tokenization import (
  tokenize_completions,
  tokenize_pairs,
  tokenize_preferences,
  tokenize_spans,
  tokenize_texts,
)
