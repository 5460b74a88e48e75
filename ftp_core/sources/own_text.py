"""Text that a model writes itself, as examples: the source `self`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from transformers import GenerationConfig

from ftp_core.errors import DataError
from ftp_core.loading.models import LoadedModel
from ftp_core.sources.json_lines import load_jsonl
from ftp_core.sources.progress import Begin, unseen
from ftp_core.text.boundary import common_length
from ftp_core.text.data import Example

PROMPT_TOKENS, COMPLETION_TOKENS = 128, 64
_BATCH = 16


def own_text(loaded: LoadedModel, n: int, seed: int, begin: Begin = unseen) -> list[Example]:
    """Examples of text that a model writes at temperature 1, from the token that begins a text.

    They are kept in the user's cache by the model's fingerprint, the number and the seed, so that they stay the same
    wherever sampling differs a little.

    Args:
        loaded: The model.
        n: Texts to write; some may leave no example.
        seed: Seed of the sampling.
        begin: Shows how far the writing is.

    Raises:
        DataError: The tokenizer has no token that begins or ends a text, or the model's context is too short.
    """
    kept = _cache() / f"{loaded.fingerprint()[:40]}-{seed}-{n}.jsonl"
    if kept.is_file():
        try:
            return load_jsonl(kept)
        except DataError:
            # A file that was cut off is written again.
            kept.unlink()
    examples = _written(loaded, n, seed, begin)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    rows = ({"prompt": example.prompt, "completion": example.completion} for example in examples)
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(kept)
    return examples


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "ftp-search" / "own-text"


def _written(loaded: LoadedModel, n: int, seed: int, begin: Begin) -> list[Example]:
    tokenizer, model = loaded.tokenizer, loaded.skipping.model
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise DataError("The model's tokenizer has no token that begins or ends a text: give other data than self.")
    length = min(PROMPT_TOKENS + COMPLETION_TOKENS, loaded.skipping.context - 1)
    if length < 8:
        raise DataError(f"The model reads {length + 1} tokens, too few to write text: give other data than self.")
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length,
        min_new_tokens=length,
        suppress_tokens=sorted(ends) or None,
        pad_token_id=start,
    )
    texts: list[list[int]] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with begin("Writing text with the model itself", n) as work, torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        while len(texts) < n:
            rows = min(_BATCH, n - len(texts))
            ids_BL = torch.full((rows, 1), start, device=model.device)
            written_BL = model.generate(
                input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), generation_config=settings
            )
            texts += written_BL[:, 1:].tolist()
            work.advance(rows)
    n_prompt = length * PROMPT_TOKENS // (PROMPT_TOKENS + COMPLETION_TOKENS)
    examples = []
    for ids in texts:
        text, prompt = (
            str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for part in (ids, ids[:n_prompt])
        )
        # A character of several tokens may be cut: what is left of it goes to the completion.
        prompt = text[: common_length(text, prompt)]
        if prompt.strip() and text[len(prompt) :].strip():
            examples.append(Example(prompt, text[len(prompt) :]))
    if not examples:
        raise DataError("The model wrote no text that makes an example: give other data than self.")
    return examples


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
