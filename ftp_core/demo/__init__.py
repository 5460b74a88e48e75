"""The demo model and its task: generated stories with questions."""

from __future__ import annotations

from pathlib import Path


def assets() -> Path:
    """The directory of the demo model, for `AutoModelForCausalLM.from_pretrained`."""
    return Path(__file__).parent / "assets"
