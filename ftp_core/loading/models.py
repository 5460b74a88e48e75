"""Loads the model and tokenizer that a user names, ready to skip tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ftp_core.errors import ModelError
from ftp_core.loading.allocator import keep_freed_memory
from ftp_core.loading.compiled_kernels import keep_few_kernels
from ftp_core.loading.gguf_files import SUFFIX
from ftp_core.loading.model_source import hub_error, locate, one_line, weights_of
from ftp_core.loading.placement import computes_natively, device_name, device_of, dtype_of, name_of
from ftp_core.loading.reference import ModelName, ModelReference
from ftp_core.schedule import FEWEST_KEPT
from ftp_core.skipping.dispatch import is_spread, stored_weights
from ftp_core.skipping.families import context_of, family_of
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of

_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path")
# Of models that live.
_fingerprints: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class LoadedModel:
    """A model that can skip tokens, with its tokenizer.

    Attributes:
        source: Its directory or Hugging Face id.
        skipping: The model.
        tokenizer: Its tokenizer.
    """

    source: str
    skipping: SkippingModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def placement(self) -> str:
        """A sentence on where the model computes, and in which precision."""
        device, dtype = self.skipping.device, self.skipping.model.dtype
        where = device_name(device)
        if is_spread(self.skipping.model):
            where += f", with parts of the model on {_places(self.skipping.model)},"
        slowly = "" if computes_natively(dtype, device) else ", which it does not do natively: float32 may be faster"
        return f"{where} computes in {name_of(dtype)}{slowly}."

    def protecting(self, keep_first: int) -> LoadedModel:
        """Returns the same with another number of protected tokens at the beginning of prompts."""
        return replace(self, skipping=self.skipping.protecting(keep_first))

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, the same wherever and by whichever transformers it is loaded.

        Computed once, since it takes seconds for large models, and weights never change.
        """
        known = _fingerprints.get(self.skipping.model)
        if known is None:
            known = _fingerprints[self.skipping.model] = self._computed_fingerprint()
        return known

    def skipping_fingerprint(self) -> str:
        """SHA-256 over what results under schedules depend on.

        That is `fingerprint`, substitutes, what keys are fitted to, and how few tokens blocks keep.
        """
        parts = substitutes_of(self.skipping.model), fitted_keys_of(self.skipping.model)
        given = [one.fingerprint() for one in parts if one is not None]
        return hashlib.sha256(" ".join([self.fingerprint(), str(FEWEST_KEPT), *given]).encode()).hexdigest()

    def _computed_fingerprint(self) -> str:
        config = self.skipping.model.config.to_diff_dict()
        facts = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, tensor in stored_weights(self.skipping.model):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _places(model: PreTrainedModel) -> str:
    """Names the devices of a model that is spread over several."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return ", ".join(sorted(f"cuda:{place}" if place.isdecimal() else place for place in places))


def resolve(model: ModelName) -> str:
    """Returns the directory or Hugging Face id of a model, after transformers has read the configuration.

    A GGUF file is unpacked when it is first asked for, and a revision is downloaded unless it is cached; other weights
    are not read.

    Raises:
        ModelError: There is no such model, files are missing, or it cannot skip tokens.
    """
    reference, source = ModelReference.of(model), locate(model)
    if source.endswith(SUFFIX):
        # It needs a package that nothing else does.
        from ftp_core.loading.unpacking import unpacked

        source = str(unpacked(Path(source)))
    try:
        if reference.revision is not None:
            source = snapshot_download(source, revision=reference.revision, allow_patterns=_DOWNLOADED)
        config = AutoConfig.from_pretrained(source)
    except Exception as error:  # every model type checks its values in its own way, with its own exceptions
        known = hub_error(error, source, reference.revision)
        raise known or ModelError(
            f"The config.json of model {str(reference)!r} cannot be read: {one_line(error)}"
        ) from error
    family_of(config)
    return source


def load_model(
    name: ModelName,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> LoadedModel:
    """Loads a model and its tokenizer.

    Args:
        name: `demo`, `smollm2`, a local directory, a GGUF file, or a Hugging Face id; see `ModelReference`.
        device: Device that it computes on; see `ftp_core.loading.placement.device_of`.
        dtype: Precision of its weights; see `ftp_core.loading.placement.dtype_of`.
        device_map: Device of each part, or a rule of transformers for them, such as `auto`: over all GPUs that there
            are, then memory, then the disk; None for the whole model on `device`.

    Raises:
        ModelError: There is no such model, its family is unknown, its weights cannot be read, there is no such device,
            it cannot compute in that precision, or accelerate is missing or cannot place the parts so.
    """
    keep_freed_memory()
    keep_few_kernels()
    source, where = resolve(name), device_of(device)
    precision = dtype_of(dtype, where, published_dtype(source))
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise ModelError("device_map needs the package accelerate: install ftp-search[device-map].")
        model, tokenizer = _load(name, precision, device_map)
        return LoadedModel(source, SkippingModel(model), tokenizer)
    model, tokenizer = _load(name, precision)
    # PreTrainedModel.to is wrapped, so that its type is lost.
    placed: PreTrainedModel = model.to(where)  # type: ignore[arg-type]
    return LoadedModel(source, SkippingModel(placed), tokenizer)


def load_tokenizer(name: ModelName) -> tuple[PreTrainedTokenizerBase, int]:
    """Loads a model's tokenizer, and the number of tokens that the model reads at once; no weights are read.

    Raises:
        ModelError: There is no such model, its family is unknown, or its tokenizer cannot be read.
    """
    source = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # broken files surface as whatever their many readers raise
        raise ModelError(f"Cannot load the tokenizer of {str(ModelReference.of(name))!r}: {one_line(error)}") from error
    return tokenizer, context_of(AutoConfig.from_pretrained(source))


def published_dtype(source: str) -> torch.dtype | None:
    """Returns the precision of a model's weights as they were published; None if neither configuration nor files say.

    Args:
        source: Result of `resolve`.
    """
    dtype = AutoConfig.from_pretrained(source).dtype
    if isinstance(dtype, torch.dtype):
        return dtype
    try:
        for file in weights_of(source):
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no dict
                    return torch.as_tensor(weights.get_slice(name)[:0]).dtype
    except (OSError, SafetensorError, IndexError):
        # Broken files are reported where they are loaded.
        return None
    return None


def load_published(name: ModelName) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model and its tokenizer as `load_model` does, but in the precision that it was published in."""
    return _load(name, "auto")


def _load(
    name: ModelName, dtype: torch.dtype | str, device_map: str | dict[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = resolve(name)
    # Its bar would run between those of the command line.
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, device_map=device_map
        )
    except Exception as error:  # broken files surface as whatever their many readers raise
        reference = ModelReference.of(name)
        known = hub_error(error, source, reference.revision)
        raise known or ModelError(f"Cannot load the model {str(reference)!r}: {one_line(error)}") from error
    adapter = ModelReference.of(name).adapter
    return (model if adapter is None else _merged(model, adapter)), tokenizer


def _merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a LoRA adapter merged into its weights; a ModelError if it was made for another one."""
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(Path(adapter).expanduser()))
        merged: PreTrainedModel = adapted.merge_and_unload()
    except Exception as error:  # what does not fit surfaces as errors of shapes, names and values
        raise ModelError(
            f"The adapter at {adapter!r} does not fit the model {model.name_or_path!r}: {one_line(error)}"
        ) from error
    # The weights are of no place any longer that a pruned model could refer to.
    merged.name_or_path = ""
    return merged
