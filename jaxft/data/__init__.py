"""Data sets by name, and the way from their records to batches on a mesh."""

from jaxft.data.augmentation.back_translation import back_translate
from jaxft.data.augmentation.easy import easy_data_augmentation, text_edit
from jaxft.data.augmentation.mixup import mixup
from jaxft.data.augmentation.synonyms import nearest_word_synonyms, wordnet_synonyms
from jaxft.data.augmentation.templates import Template, render_templates
from jaxft.data.augmentation.views import two_views
from jaxft.data.bags import bag_batches, scheduled, similar_bags
from jaxft.data.chat.rendering import Rendered, render_chat, render_with_spans, tokenize_chats
from jaxft.data.class_splits import BaseNovel, Session, base_to_novel, few_shot, sessions
from jaxft.data.collate import collate
from jaxft.data.computed import with_computed
from jaxft.data.corruption.adversarial import adversarial_consistency, adversarial_noise
from jaxft.data.corruption.denoising import (
  T5,
  UL2,
  UL2R,
  Denoised,
  Denoiser,
  Mixed,
  mixture_of_denoisers,
  span_corruption,
  span_lengths,
  to_prefix_lm,
)
from jaxft.data.corruption.layer_noise import LayerNoise, layer_noise
from jaxft.data.corruption.spans import prefix_mask, random_segmentation, random_spans_mask
from jaxft.data.corruption.tokens import Corrupted, Replacement, corrupt_tokens, replace_by_generator
from jaxft.data.corruption.vectors import adaptive_gaussian_noise, embedding_noise
from jaxft.data.deconfounding import Deconfounded, residualize_reward
from jaxft.data.demonstrations import retrieve_demonstrations
from jaxft.data.descriptions import Description, Example, ObjectNote, Revision, box_text, refine, to_box, to_examples
from jaxft.data.hard_negatives import HardNegatives, mine_hard_negatives
from jaxft.data.images import on_background
from jaxft.data.key_tokens import deciding_offsets, key_token_weights
from jaxft.data.packed_pairs import PairPacking, plan_packing, tokenize_packed_pairs
from jaxft.data.packing import pack, pack_texts, token_budget_batches
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
from jaxft.data.relabeling import folds, relabel
from jaxft.data.sources import builder, names, source
from jaxft.data.splits import near_duplicates, per_group_split
from jaxft.data.task_batches import draw_mixture, task_homogeneous_batches, training_phases
from jaxft.data.tokenization import (
  tokenize_completions,
  tokenize_pairs,
  tokenize_preferences,
  tokenize_spans,
  tokenize_texts,
)
from jaxft.data.tools.accepted import accepted_calls
from jaxft.data.tools.calls import ToolCall, parse_call, parse_calls, render_call, same_value
from jaxft.data.tools.curriculum import curriculum
from jaxft.data.tools.fragments import fragment_ends, split_fragments
from jaxft.data.tools.rewards import TL_TRAINING, CallError, call_error, tool_call_reward
from jaxft.data.tools.turns import Turn, drop_failed_turns, reports_error
