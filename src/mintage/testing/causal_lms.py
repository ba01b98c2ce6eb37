"""A zoo of tiny causal language models: every class that transformers' ``AutoModelForCausalLM`` knows, built from its
configuration alone, without a network, in milliseconds (its module's first import apart).

Use::

    from mintage.testing.causal_lms import build_tiny, names
    for name in names():                # "llama", "gpt2", "deepseek_v3", ...: values of `config.model_type`
        model = build_tiny(name)             # seeded, float32, evaluation mode, VOCABULARY tokens, no end token

Sizes come from one table of what configurations call them; what a kind needs beyond that stands in `_SPECIAL`. Every
weight and bias is drawn anew, so that nothing starts at zero or one and hides a fault. Not here: what `UNBUILT` lists.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch

__all__ = ["UNBUILT", "VOCABULARY", "WINDOW", "build_tiny", "class_of", "names"]

VOCABULARY = 24
WINDOW = 6
"""Sliding windows and chunks; prompts of the tests are longer."""

_SIZES: dict[str, Any] = {
    # the decoder
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("embedding_size", "emb_dim", "lru_width", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "query_pre_attn_scalar", "kv_channels"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_inner"), 48),
    **dict.fromkeys(("ffn_hidden_size", "dff", "intermediate_size_mlp", "feed_forward_size"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 256),
    "rotary_dim": 4,
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_chunk_size"), WINDOW),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id", "eod_token_id", "pad_token_id", "pad_index"), 0),
    **dict.fromkeys(("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"), 0),
    **dict.fromkeys(("image_token_id", "image_token_index", "video_token_id", "audio_token_id"), 23),
    # experts
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("num_shared_experts", "moe_num_shared_experts"), 1),
    # latent attention: keys of 16, values of 12
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    "v_head_dim": 12,
    **dict.fromkeys(("index_head_dim", "index_n_heads", "index_topk"), 8),
    # recurrent and linear layers
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 4),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("use_mamba_kernels", "use_mambapy"), False),
    # pictures and sounds
    **dict.fromkeys(("image_size", "patch_size"), 8),
    # no keys of other layers, no kernels that are not there; encoders as decoders
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "is_decoder": True,
}

_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4}
_LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16}
_LATENT |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
_ATTENDS = {"layer_types": ["linear_attention", "full_attention"]}

_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cpmant": {"dim_head": 8, "dim_ff": 48, "prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 16},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 0},
    "dots3_note_text": {f"swa_{name}": value for name, value in _LATENT.items()},
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_ATTENDS, **_MAMBA},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "inkling2_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    | {"indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 4},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (16, 16), "attention_head_size": 8}
    | {"attn_layers": ["local", "lsh"], "num_buckets": 2},
    "roc_bert": {"pronunciation_vocab_size": 24, "shape_vocab_size": 24}
    | {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "xlstm": {"num_heads": 2, "hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "n_mamba_heads": 2},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What a kind needs beyond its sizes."""
_SPECIAL["qwen4_exp"] = _SPECIAL["qwen4_exp_text"]

_WITH_EYES = "with its picture and sound towers it is not tiny; its text model is in the zoo as {}"

UNBUILT: dict[str, str] = {
    "blt": "transformers' own generate fails on it (its configuration names no num_hidden_layers)",
    **{name: _WITH_EYES.format(f"{name}_text") for name in ("dots3_note", "gemma3n", "gemma4", "gemma4_unified")},
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "it drafts from a Gemma 4's hidden states, never alone",
    ),
    "got_ocr2": _WITH_EYES.format("qwen2"),
    "phi4_multimodal": _WITH_EYES.format("phi3"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "its tokens are several codebooks of sound at once, not a text"),
}
"""Kinds of the mapping that are not in the zoo, with the reason."""


def names() -> list[str]:
    """Return the kinds (``config.model_type``) of the installed transformers that `build_tiny` makes, sorted."""
    return sorted(set(_mapping()) - UNBUILT.keys())


def class_of(name: str) -> str:
    """Return the name of the class that `build_tiny` makes for a kind."""
    return _mapping()[name]


def build_tiny(name: str, *, seed: int = 0, attention: str | None = None, **settings: Any) -> Any:
    """Make a tiny model of a kind.

    Parameters
    ----------
    name
        One of `names`.
    seed
        Of its weights.
    attention
        ``"sdpa"`` or ``"eager"``; by default transformers chooses.
    settings
        Override the configuration's.
    """
    import transformers

    cls, kind = getattr(transformers, class_of(name)), transformers.CONFIG_MAPPING[name]
    if kind.sub_configs and kind is not cls.config_class:  # of a whole with eyes or ears, whose text part this is
        kind = cls.config_class
    config = _config(kind, {**_SPECIAL.get(name, {}), **settings})
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls._from_config(config, **chosen).eval().float()
    model.generation_config.update(
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"))
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3, generator=draw)
            elif weight.is_floating_point():
                weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return model


def _mapping() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _config(kind: Any, settings: dict[str, Any]) -> Any:
    """Make a configuration from the sizes that it has, its parts' alike."""
    given = {name: _SIZES[name] for name in inspect.signature(kind.__init__).parameters if name in _SIZES}
    if "kv_lora_rank" in given:  # latent attention gives every head keys of its own
        given["num_key_value_heads"] = given["num_attention_heads"]
    default = kind()
    for name in ("layer_types", "layers_block_type", "block_types"):
        kinds = list(dict.fromkeys(getattr(default, name, None) or ()))
        if len(kinds) > 1 and name in inspect.signature(kind.__init__).parameters:  # one layer of every kind
            given |= {name: kinds, "num_hidden_layers": len(kinds)}
    for part, own in kind.sub_configs.items():
        own = type(getattr(default, part, None) or own())  # where any kind may stand, the default's
        given[part] = _config(own, settings.pop(part, {}))
    return kind(**{**given, **settings})
