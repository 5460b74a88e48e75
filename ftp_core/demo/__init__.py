"""The demo: a small pretrained Llama that ships with the package, with the task that it was trained on."""

from __future__ import annotations

from pathlib import Path


def assets() -> Path:
    """The directory of the demo model, for `AutoModelForCausalLM.from_pretrained`."""
    return Path(__file__).parent / "assets"
