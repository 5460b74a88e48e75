"""The model card of a pruned model: what it is, how it is loaded, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ftp_core.loading.hub_cache import origin_of
from ftp_core.loading.reference import ModelReference
from ftp_core.model.configuration import FTPConfig
from ftp_core.schedule import SparsitySchedule

CARD = "README.md"
# Marks a card that may be replaced; one that people wrote may not.
_MARK = "<!-- written by ftp-search: remove this line to keep changes -->"
_LIMITS = "## Limits"
_UNMEASURED = "- Nothing was measured of it when this was written.\n"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(config: FTPConfig, folder: Path, beside: Path) -> None:
    """Writes the card of a pruned model into a folder, unless people wrote one in the model's directory, `beside`."""
    if _may_replace(beside / CARD):
        (folder / CARD).write_text(_card(config), encoding="utf-8")


def add_figures(folder: Path, beside: Path, figures: Sequence[str]) -> None:
    """Puts figures, lines of Markdown, into a card just written, or removes it if people wrote one in `beside`."""
    card = folder / CARD
    if not _may_replace(beside / CARD):
        card.unlink(missing_ok=True)
    elif figures:
        text = card.read_text(encoding="utf-8")
        section = "\n".join(["## Figures", "", *figures, "", _LIMITS])
        card.write_text(text.replace(_LIMITS, section).replace(_UNMEASURED, ""), encoding="utf-8")


def _may_replace(card: Path) -> bool:
    return not card.exists() or _MARK in card.read_text(encoding="utf-8", errors="replace")


def _card(config: FTPConfig) -> str:
    base, schedule = config.base_config, SparsitySchedule.from_json(config.schedule)
    if config.base_model is not None:
        origin = ModelReference(config.base_model, config.base_revision)
    else:
        origin = origin_of(getattr(base, "_name_or_path", "") or "")
    name = str(origin.name)
    is_public = bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()
    kind = getattr(base, "model_type", "dense")
    revision = f" (revision `{origin.revision}`)" if origin.revision else ""
    what = f"`{name}`{revision}" if is_public else f"a `{kind}` model"
    router = (config.router or {}).get("kind", "static")
    if config.base_model is None:
        weights = "The dense model's weights are included."
    else:
        place = f"on the Hub, `{name}`" if is_public else f"at `{name}`"
        weights = (
            f"The dense model's weights are not included: they are read from where they lay, {place}. If they have "
            "moved, name the place with `from_pretrained(..., base_model=...)`."
        )
    parts = "transformer blocks" if schedule.is_plain else "halves of transformer blocks"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {name}"] if is_public else []),
        "tags: [ftp-search, token-skipping, pruned]",
        "---",
        _MARK,
        "",
        f"# {Path(name).name or kind}, pruned",
        "",
        f"This is {what} whose prompt tokens skip {parts}: {schedule.overall:.1%} of them, averaged over its "
        f"{schedule.n_blocks} blocks. The dense model's weights are unchanged. {weights}",
        "",
        *_table(schedule),
        "",
        f"The `{router}` router decides which tokens skip. Of decoded tokens, "
        + ("none skips." if config.decode_sparsity == 0 else f"up to {config.decode_sparsity:.0%} skip a block.")
        + (
            f" The first {config.keep_first} tokens of every prompt are kept before others."
            if config.keep_first
            else ""
        ),
        "",
        "## Loading",
        "",
        "transformers alone cannot run it: install `ftp-search` (`pip install .` in a clone of its repository). Then",
        "",
        "```python",
        "from ftp_core import FTPForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        'model = FTPForCausalLM.from_pretrained("path/of/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")',
        "```",
        "",
        "or, without the import, `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`, which runs "
        "`modeling_ftp.py` of this folder: it imports the installed `ftp_core`, and does nothing else.",
        "lm-evaluation-harness scores it with",
        "`python -m ftp_core.harness --model ftp --model_args pretrained=path/of/this/folder`.",
        "",
        _LIMITS,
        "",
        "- Only prompts become cheaper; what is gained depends on their length, and on the machine.",
        "- Tokens that skip a block are lost to it: what a prompt says only there may be missed. Measure it on your "
        "task.",
        "- Otherwise it has the limits, the biases and the licence of the dense model.",
    ]
    return "\n".join(lines) + "\n" + _UNMEASURED


def _table(schedule: SparsitySchedule) -> list[str]:
    """Lines of the table of what skips in each block."""
    if schedule.is_plain:
        rows = [f"| {index} | {share:.0%} |" for index, share in enumerate(schedule)]
        return ["| block | tokens that skip it |", "| --- | --- |", *rows]
    rows = []
    for index, (attention, mlp, keeps_kv) in enumerate(schedule.blocks):
        keys = "" if attention == 0 else "kept" if keeps_kv else "dropped"
        rows.append(f"| {index} | {attention:.0%} | {keys} | {mlp:.0%} |")
    head = "| block | tokens that skip its attention | their keys and values | tokens that skip its MLP |"
    return [head, "| --- | --- | --- | --- |", *rows]
