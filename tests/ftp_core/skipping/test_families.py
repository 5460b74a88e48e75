"""Models that are not of a supported family are refused with the reason, before weights are read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftp_core.errors import DataError, ModelError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.skipping.families import context_of, family_described, family_of
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS

STATES = "some keep a state that every token must pass"
IMAGES = "images or sound besides text"


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        *((name, STATES) for name in ("jamba", "mamba", "qwen3_next", "granitemoehybrid", "falcon_h1", "lfm2")),
        *((name, STATES) for name in ("bamba", "recurrent_gemma", "nemotron_h", "minimax", "qwen3_5_text")),
        *((name, "keep a state that every token must pass") for name in ("rwkv", "xlstm")),
        *((name, IMAGES) for name in ("llama4", "gemma3", "gemma3n", "gemma4", "qwen2_vl", "llava", "mllama")),
        *((name, IMAGES) for name in ("qwen2_audio", "phi4_multimodal", "chameleon")),
        ("t5", "an encoder besides the decoder"),
        ("gemma3n_text", "several streams of hidden states"),
        ("bloom", "not known. Others can be added with ftp_core.register_family. Supported are cohere, cohere2,"),
    ],
)
def test_a_model_that_cannot_skip_tokens_is_refused_with_its_reason(model_type: str, reason: str) -> None:
    config = AutoConfig.for_model(model_type)
    for refuse in (lambda: family_of(config), lambda: family_described(config.to_dict())):
        with pytest.raises(ModelError, match=f"'{model_type}' cannot skip tokens: .*{reason}"):
            refuse()


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("gemma4_text", {"num_kv_shared_layers": 1}, "read the keys and values of earlier ones"),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "attend to those behind them"),
        ("gpt2", {"add_cross_attention": True}, "attend to another model's states"),
    ],
)
def test_a_setting_under_which_a_block_is_no_plain_block_is_refused(name: str, setting: dict, reason: str) -> None:
    assert family_of(AutoConfig.for_model(**CONFIGS[name])) == family_described(CONFIGS[name])
    with pytest.raises(ModelError, match=f"This {name} model .*{reason}"):
        family_of(AutoConfig.for_model(**CONFIGS[name], **setting))


def test_texts_of_a_family_end_where_its_blocks_begin_to_count_tokens_themselves() -> None:
    settings = {"attention_chunk_size": 80, "floor_scale": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**CONFIGS["llama4_text"], **settings})).eval()
    assert context_of(model.config) == 63
    pruned = FTPForCausalLM.from_dense(model, [0.5] * N_BLOCKS)
    with torch.no_grad():
        with pytest.raises(DataError, match="64"):
            pruned(torch.ones(1, 64, dtype=torch.long))
        cache = pruned(torch.ones(1, 63, dtype=torch.long), use_cache=True).past_key_values
        with pytest.raises(DataError, match="64 tokens are more than the 63 that the model has positions for"):
            pruned(torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
