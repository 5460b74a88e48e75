"""Models that comparison methods are tested on, and their figures computed the slow way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftp_core.text.encoding import EncodedExample
from tests.ftp_core.tiny_models import CONFIGS, VOCABULARY

N_BLOCKS = 6


def deep_base(family: str = "llama", n_blocks: int = N_BLOCKS) -> PreTrainedModel:
    """A model of its own with more blocks than `tiny`."""
    config = {**CONFIGS[family], "num_hidden_layers": n_blocks, "vocab_size": VOCABULARY}
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(1)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
        return model


def examples(n: int = 5) -> list[EncodedExample]:
    """Random examples, some of them multiple choice."""
    draws = torch.Generator().manual_seed(3)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=draws).tolist())

    return [EncodedExample(ids(11 + 7 * (i % 3)), (ids(4), ids(5)), i % 2, i % 2 == 0) for i in range(n)]


def texts(of: Sequence[EncodedExample]) -> list[list[int]]:
    """Prompts with their right continuations."""
    return [[*one.prompt, *one.continuations[one.answer]] for one in of]


def slow_nll(model: PreTrainedModel, of: Sequence[EncodedExample]) -> torch.Tensor:
    """Negative log-likelihood of whole texts, one by one."""
    losses = []
    for text in texts(of):
        ids = torch.tensor([text])
        losses.append(cross_entropy(model(ids, use_cache=False).logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
    return torch.stack(losses).sum()
