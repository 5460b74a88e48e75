"""References to models: name, the revision on the Hub, and an adapter to merge."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ftp_core.errors import ModelError


@dataclass(frozen=True)
class ModelReference:
    """A model as settings name it.

    Attributes:
        name: `demo`, `smollm2`, a local directory, a GGUF file, or a Hugging Face id.
        revision: Branch, tag or commit of a model on the Hub; None for the main one.
        adapter: Directory of a LoRA adapter that is merged into the weights; None for none.
    """

    name: str | os.PathLike[str]
    revision: str | None = None
    adapter: str | None = None

    @classmethod
    def of(cls, model: ModelName) -> ModelReference:
        """The reference that a name stands for, or the reference itself."""
        return model if isinstance(model, ModelReference) else cls(model)

    def __str__(self) -> str:
        """The name, with what else there is."""
        more = [f"revision {self.revision}"] if self.revision else []
        more += [f"adapter {self.adapter}"] if self.adapter else []
        return os.fspath(self.name) + (f" ({', '.join(more)})" if more else "")


ModelName = str | os.PathLike[str] | ModelReference


def check_adapter(adapter: str) -> None:
    """Raises `ModelError` unless a directory holds a LoRA adapter as safetensors, and peft is there to merge it."""
    path = Path(adapter).expanduser()
    try:
        kind = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"No adapter at {adapter!r}: expected a directory with adapter_config.json and "
            f"adapter_model.safetensors, as peft's save_pretrained writes it ({type(error).__name__})."
        ) from error
    if kind != "LORA":
        raise ModelError(f"The adapter at {adapter!r} is of type {kind!r}: expected LORA, which can be merged.")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"The adapter at {adapter!r} has no adapter_model.safetensors: save it anew with peft's save_pretrained."
        )
    if find_spec("peft") is None:
        raise ModelError(
            f"The adapter at {adapter!r} needs the package peft, which is not installed: pip install 'peft>=0.21,<1'."
        )
