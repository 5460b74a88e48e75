"""Loads the model and tokenizer that a user names, ready to skip tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.skipping import SUPPORTED_FAMILIES, SkippingModel

DEMO = "demo"


@dataclass(frozen=True)
class LoadedModel:
    """A model that can skip tokens, with its tokenizer.

    Attributes:
        source: Where it came from: a directory or a Hugging Face id.
        skipping: The model.
        tokenizer: Its tokenizer.
    """

    source: str
    skipping: SkippingModel
    tokenizer: PreTrainedTokenizerBase

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, the same wherever the model is loaded from."""
        digest = hashlib.sha256(self.skipping.model.config.to_json_string(use_diff=True).encode())
        for name, tensor in sorted(self.skipping.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def resolve(name: str) -> str:
    """The directory or Hugging Face id that a user's name for a model stands for.

    Args:
        name: `demo`, a local directory, or a Hugging Face id.

    Raises:
        ModelError: It is neither, or the model's family cannot skip tokens. Weights are not read.
    """
    if name == DEMO:
        return str(assets())
    path = Path(name).expanduser()
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(
            f"No model at {name!r}: expected 'demo', a directory with config.json and safetensors weights, "
            "or a Hugging Face id such as 'meta-llama/Llama-3.2-1B'."
        )
    source = str(path.resolve()) if looks_local else name
    try:
        if not looks_local:
            _check_hub(name)
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, HubError) as error:
        raise ModelError(
            f"Cannot find the model {name!r}: expected 'demo', a local directory, or the id of a model on the "
            f"Hugging Face Hub that this machine can reach ({_first_line(error)})."
        ) from error
    if config.model_type not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"Models of type {config.model_type!r} cannot skip tokens; supported are {', '.join(SUPPORTED_FAMILIES)}."
        )
    return source


def load_model(name: str) -> LoadedModel:
    """Load a model and its tokenizer, in float32 on the CPU.

    Args:
        name: `demo`, a local directory, or a Hugging Face id.

    Raises:
        ModelError: There is no such model, its family is unknown, or its weights cannot be read.
    """
    source = resolve(name)
    # Its bar would run between those of the command line.
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"Cannot load the model {name!r}: {_first_line(error)}") from error
    return LoadedModel(source, SkippingModel(model), tokenizer)


class HubError(Exception):
    """The Hub cannot be asked, or does not know the model."""


def _check_hub(name: str) -> None:
    """Raise `HubError` unless the model is cached or the Hub answers for it.

    transformers itself would retry for half a minute before it says that there is no network.
    """
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the client's network errors come from whichever HTTP library it is built on
        raise HubError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
