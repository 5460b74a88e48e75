"""Counts the floating-point operations of a schedule."""

from __future__ import annotations

from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel


def prefill_flops(model: SkippingModel, schedule: SparsitySchedule, batch: int, length: int) -> float:
    """Floating-point operations of one prefill: two per multiply-add, matrix products only, as torch's counter does.

    Attention is counted over the full k x k square, which is what the counter counts, although a causal kernel may
    compute half of it. The head runs on the last token of each row.

    Args:
        model: The model.
        schedule: One sparsity per block.
        batch: Rows.
        length: Tokens in each row.
    """
    model.check(schedule)
    config = model.model.config
    n_heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    total = 0.0
    for block, kept in zip(model.blocks, schedule.kept_counts(length), strict=True):
        matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
        total += 2.0 * kept * matrices + 4.0 * kept * kept * n_heads * head_width
    head = 2.0 * config.hidden_size * config.vocab_size
    return float(batch * (total + head))
