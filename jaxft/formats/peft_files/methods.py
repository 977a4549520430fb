"""The table of methods: what an adapter of each of PEFT's types is here, and what its file holds.

A row says how to build the transform from the settings of `adapter_config.json`, which tensors a module has and how
they lie, and which settings can be read off a trained adapter. Saving and loading are the same loop for all.
"""

from typing import Any, Literal

import numpy as np

from jaxft.checks import nearest, pick
from jaxft.formats.peft_files import layouts, projections
from jaxft.formats.peft_files.method import Method
from jaxft.formats.peft_files.modules import matches
from jaxft.formats.peft_files.variants import (
  block_of,
  boft_block,
  endless_series,
  feedforward,
  full_logits,
  lokr_factor,
  lokr_rank,
  lora_measure,
  lora_or_dora,
  lora_parts,
  lora_scale,
  moved_base,
  oft_block,
  oft_blocks,
  restore_pruned,
  shira_fill,
  shira_parts,
  shira_rank,
  strange_rows,
  tidy,
  whole_left,
  without_copies,
  without_the_head,
)
from jaxft.transforms.entries.sparse_delta import shira
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.low_rank.adalora import adalora
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.low_rank.vera import vera
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import learned_scale
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.transforms.structured.lokr import lokr
from jaxft.transforms.structured.miss import miss
from jaxft.transforms.whole.freeze import train

RANK = {"r": "rank_pattern"}
ROAD_VARIANTS: dict[str, Literal[1, 2, 4]] = {"road_1": 1, "road_2": 2, "road_4": 4}
LYCORIS = {"r": "rank_pattern", "alpha": "alpha_pattern"}
LORA_VARIANTS = (
    "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "target_parameters",
    "layer_replication", "arrow_config", "velora_config", "kasa_config", "monteclora_config")
_rank = lambda name: lambda x, leaf, place, s: {"r": x[name].shape[-1]}

METHODS = {
    "LORA": Method(
        lora_or_dora,
        {"a": layouts.turned("lora_A.weight"), "b": layouts.turned("lora_B.weight"),
         "magnitude": layouts.same("lora_magnitude_vector")},
        {"r": 8, "lora_alpha": 8, "use_rslora": False, "use_dora": False, "lora_dropout": 0.0, "bias": "none"},
        lora_measure, patterns={"r": "rank_pattern", "lora_alpha": "alpha_pattern"}, parts=lora_parts, scale=lora_scale,
        embedding={"a": layouts.turned("lora_embedding_A"), "b": layouts.turned("lora_embedding_B")},
        fixed={"init_lora_weights": True, "fan_in_fan_out": False}, check=moved_base, ties=True, takes_tokens=True,
        refuses=LORA_VARIANTS, reads=("trainable_token_indices",)),
    "ADALORA": Method(
        lambda select, s: adalora(select, rank=s["init_r"], alpha=s["lora_alpha"]),
        {"a": layouts.turned("lora_A"), "e": layouts.column("lora_E"), "b": layouts.turned("lora_B")},
        {"init_r": 12, "lora_alpha": 8},
        lambda x, leaf, place, s: {"init_r": len(x["e"]), "lora_alpha": tidy(leaf.scale * (len(x["e"]) + 1e-5))},
        fixed={"init_lora_weights": True, "total_step": 1}, prepare=restore_pruned, sizes=("init_r",),
        refuses=(*LORA_VARIANTS, "use_dora", "use_rslora", "alpha_pattern", "trainable_token_indices"),
        reads=("r", "rank_pattern")),
    "VERA": Method(
        lambda select, s: vera(select, rank=s["r"]),
        {"s": layouts.same("vera_lambda_b"), "d": layouts.same("vera_lambda_d")}, {"r": 256},
        lambda x, leaf, place, s: {"r": len(x["d"])}, fixed={"save_projection": True}, shared=projections.VERA),
    "IA3": Method(
        lambda select, s: learned_scale(select, axis=s["axis"]), {"scale": layouts.turned("ia3_l")},
        {"feedforward_modules": []}, overall=feedforward, sizes=(),
        local=lambda s, place: {"axis": "in" if matches(place.module, s["feedforward_modules"] or []) else "out"},
        changes_bias=lambda s: s["axis"] == "out"),
    "LN_TUNING": Method(
        lambda select, s: train(select),
        {"weight": layouts.same("ln_tuning_layers.weight"), "bias": layouts.same("ln_tuning_layers.bias")},
        sizes=(), candidates=lambda place: "norm" in place.path.split("/")[-2]),
    "TRAINABLE_TOKENS": Method(
        lambda select, s: trainable_tokens(s["token_indices"], select), {}, {"token_indices": None},
        lambda x, leaf, place, s: {"token_indices": np.asarray(leaf.rows).reshape(-1).tolist()},
        embedding={"rows": layouts.same("trainable_tokens_delta")}, candidates=lambda place: place.embedding,
        adapts_tied=True, prepare=without_the_head, sizes=(), check=strange_rows),
    "LOHA": Method(
        lambda select, s: loha(select, rank=s["r"], alpha=s["alpha"]),
        {"a1": layouts.turned("hada_w1_b"), "b1": layouts.turned("hada_w1_a"), "a2": layouts.turned("hada_w2_b"),
         "b2": layouts.turned("hada_w2_a")}, {"r": 8, "alpha": 8}, _rank("a1"), patterns=LYCORIS, asks=("alpha",)),
    "LOKR": Method(
        lambda select, s: lokr(select, rank=s["r"], alpha=s["alpha"],
                               factor=None if s["decompose_factor"] == -1 else s["decompose_factor"]),
        {"left": layouts.turned("lokr_w1"), "right": layouts.turned("lokr_w2"), "a": layouts.turned("lokr_w2_b"),
         "b": layouts.turned("lokr_w2_a")},
        {"r": 8, "alpha": 8, "decompose_factor": -1}, lokr_rank, overall=lokr_factor, patterns=LYCORIS,
        prepare=whole_left, sizes=()),
    "OFT": Method(
        lambda select, s: oft(
            select, block=s["block"], terms=s["num_cayley_neumann_terms"] if s["use_cayley_neumann"] else None),
        {"skew": layouts.same("oft_R.weight")},
        {"r": 0, "oft_block_size": 32, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5},
        overall=oft_blocks, asks=("use_cayley_neumann",), local=oft_block, refuses=("coft", "block_share"), sizes=(),
        check=endless_series),
    "BOFT": Method(
        lambda select, s: boft(select, block=s["block"], factors=s["boft_n_butterfly_factor"]),
        {"skew": layouts.skew("boft_R"), "scale": layouts.turned("boft_s")},
        {"boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1},
        lambda x, leaf, place, s: {"boft_block_size": block_of(x["skew"].shape[-1]), "boft_block_num": 0,
                                   "boft_n_butterfly_factor": len(x["skew"])},
        local=boft_block, sizes=("boft_block_size", "boft_n_butterfly_factor")),
    "HRA": Method(lambda select, s: hra(select, rank=s["r"]), {"u": layouts.same("hra_u")}, {"r": 8}, _rank("u"),
                  refuses=("apply_GS",)),
    "FOURIERFT": Method(
        lambda select, s: fourier_ft(select, frequencies=s["n_frequency"], scale=s["scaling"]),
        {"spectrum": layouts.same("fourierft_spectrum")},
        {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777},
        lambda x, leaf, place, s: {"n_frequency": len(x["spectrum"])}, asks=("scaling",),
        fixed={"random_loc_seed": 777}, sizes=("n_frequency",),
        patterns={"n_frequency": "n_frequency_pattern"}, shared=projections.FREQUENCIES),
    "VBLORA": Method(
        lambda select, s: vb_lora(
            select, rank=s["r"], vectors=s["num_vectors"], length=s["vector_length"], top=s["topk"]),
        {"a": layouts.same("vblora_logits_A"), "b": layouts.same("vblora_logits_B")},
        {"r": 4, "num_vectors": 256, "vector_length": 256, "topk": 2},
        lambda x, leaf, place, s: {"r": len(x["a"]), "num_vectors": len(x["bank"]),
                                   "vector_length": x["bank"].shape[-1]},
        asks=("topk",), shared=projections.VECTOR_BANK, prepare=full_logits,
        sizes=("r", "num_vectors", "vector_length")),
    "MISS": Method(lambda select, s: miss(select, rank=s["r"]), {"shard": layouts.same("miss_block")}, {"r": 64},
                   lambda x, leaf, place, s: {"r": len(x["shard"])}, fixed={"init_weights": True},
                   check=lambda s: "" if isinstance(s.get("init_weights", True), bool) else
                   f"init_weights={s['init_weights']!r} is another form of MiSS, which is not computed here"),
    "C3A": Method(
        lambda select, s: c3a(select, block=s["block_size"]), {"kernel": layouts.same("c3a_kernel")},
        {"block_size": 256}, lambda x, leaf, place, s: {"block_size": x["kernel"].shape[-1]},
        patterns={"block_size": "block_size_pattern"}, sizes=("block_size",)),
    "RANDLORA": Method(
        lambda select, s: rand_lora(select, rank=s["r"], alpha=s["randlora_alpha"]),
        {"scales": layouts.same("randlora_lambda"), "weights": layouts.shorter_last("randlora_gamma")},
        {"r": 32, "randlora_alpha": 640}, lambda x, leaf, place, s: {"r": len(x["scales"])}, asks=("randlora_alpha",),
        fixed={"save_projection": True}, shared=projections.RAND_LORA, prepare=without_copies),
    "DELORA": Method(
        lambda select, s: delora(select, rank=s["r"]),
        {"a": layouts.turned("delora_A"), "b": layouts.turned("delora_B"), "strength": layouts.one("delora_lambda"),
         "rows": layouts.same("delora_w_norm")}, {"r": 8}, _rank("a"), patterns=RANK),
    "HIRA": Method(lambda select, s: hira(select, rank=s["r"]),
                   {"a": layouts.turned("hira_A"), "b": layouts.turned("hira_B")}, {"r": 32}, _rank("a"),
                   # PEFT has the key, and makes every module of rank r.
                   reads=("rank_pattern",)),
    "ROAD": Method(
        lambda select, s: road(select, variant=pick("variant", s["variant"], ROAD_VARIANTS), group=s["group_size"]),
        {"theta": layouts.same("road_theta"), "alpha": layouts.same("road_alpha")},
        {"variant": "road_1", "group_size": 64},
        lambda x, leaf, place, s: {"variant": f"road_{2 * len(x['theta']) // place.shape[1]}",
                                   "group_size": leaf.by.group}, changes_bias=lambda s: True, sizes=()),
    "SHIRA": Method(
        lambda select, s: shira(select, rank=s["r"]),
        {"values": layouts.same("shira_weight"), "entries": layouts.entries("shira_indices")}, {"r": 32}, shira_rank,
        parts=shira_parts, fill=shira_fill),
}

# Files that hold rows in front of the input, or keys and values, and no tensor of a module.
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def method_of(peft_type: Any) -> Method:
  """The row of a type.

  Raises:
    ValueError: there is none (the known ones are named), or it is one of prompts.
  """
  name = str(peft_type)
  if name in PROMPTS:
    raise ValueError(f"peft_type {name} changes the input and no module: use load_peft_prompt and save_peft_prompt")
  if name not in METHODS:
    known = ", ".join((*METHODS, *PROMPTS))
    close = nearest(name.upper(), (*METHODS, *PROMPTS))
    raise ValueError(f"peft_type {peft_type!r} is not known here; {close}; all: {known}")
  return METHODS[name]
