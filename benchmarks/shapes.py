"""Models by shape, prompts and schedules to time them with: what speed and memory hang on, weights apart."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ftp_core.loading.models import load_model
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch

# Of the sparsity of the inner blocks, from the outermost inwards at both ends.
OUTER_SHARES = (0.25, 0.6)


def _shape(kind, vocabulary, width, mlp, blocks, heads, kv_heads, context):
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
    }


# Pythia-160M's shape, with Llama's blocks, in float32; SmolLM2-135M's in bfloat16.
SMALL = {
    "160m": _shape("llama", 32_000, 768, 2048, 12, 12, 12, 2048),
    "smollm2": _shape("llama", 49_152, 576, 1536, 30, 9, 3, 8192) | {"tie_word_embeddings": True},
}
# As their published config.json files have it; bfloat16, on a GPU.
LARGE = {
    "llama2-7b": _shape("llama", 32_000, 4096, 11_008, 32, 32, 32, 4096),
    "llama3-8b": _shape("llama", 128_256, 4096, 14_336, 32, 32, 8, 8192),
    "qwen1.5-7b": _shape("qwen2", 151_936, 4096, 11_008, 32, 32, 32, 32_768),
    "llama2-13b": _shape("llama", 32_000, 5120, 13_824, 40, 40, 40, 4096),
}
SHAPES = ("demo", *SMALL, *LARGE)


def build(shape, device):
    """The demo model, or one of a shape with random weights, made on the device."""
    if shape == "demo":
        return SkippingModel(load_model("demo").skipping.model.to(device))
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(SMALL | LARGE)[shape])
    with torch.device(device):
        dtype = torch.float32 if shape == "160m" else torch.bfloat16
        return SkippingModel(AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


def random_prompts(model, batch, length, seed):
    """A rectangular batch of random tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.model.config.vocab_size, (batch, length), generator=draw)
    return PromptBatch(ids, torch.full((batch,), length)).to(model.device)


def searched(overall, n_blocks):
    """A schedule of the kind that searches find: the outer two blocks at both ends skip less, the mean is `overall`."""
    shares = [1.0] * n_blocks
    for depth, share in enumerate(OUTER_SHARES):
        if 2 * depth + 1 < n_blocks:
            shares[depth] = shares[-1 - depth] = share
    return SparsitySchedule([overall * n_blocks / sum(shares) * share for share in shares])


def from_depth(n_blocks, start, attention, mlp):
    """A schedule whose blocks skip alike from a share of the depth on, halves apart, keys and values kept."""
    skips = [index >= round(start * n_blocks) for index in range(n_blocks)]
    return SparsitySchedule.of_halves(*([share * does for does in skips] for share in (attention, mlp)), True)
