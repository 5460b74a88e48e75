"""Identity of a model, so that what was made for one model is not used with another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.checks import is_plain
from ftp_core.skipping.dispatch import is_spread, stored_weights

_SAMPLES = 64
# Digits of each of the two hashes.
_HALF = 16
# Settings that tell the origin of a model or how it was loaded, not what it computes.
_CIRCUMSTANCES = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "architectures")


def is_comparable(model: PreTrainedModel) -> bool:
    """Returns True if a model has an identity: its weights can be read, and none is quantised."""
    if getattr(model, "hf_quantizer", None) is not None:
        return False
    # Offloaded weights are read from where they lie.
    return all(is_plain(weight) or (weight.is_meta and is_spread(model)) for weight in model.parameters())


def model_identity(
    model: PreTrainedModel, dtype: torch.dtype | None = None, weights: Mapping[str, Tensor] | None = None
) -> str:
    """Joins two hashes: of configuration and shapes, and of a sample of every weight; quick for large models.

    Weights are compared as bfloat16, to which float32 rounds in one way only. float16 rounds otherwise: see
    `same_model`.

    Weights are the model's own, or those given by name; rounded to `dtype` first, if it is given.
    """
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _CIRCUMSTANCES}
    structure = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    samples = hashlib.sha256()
    for name, tensor in stored_weights(model) if weights is None else sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        structure.update(f"{name} {tuple(tensor.shape)}".encode())
        sample = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES]
        samples.update(sample.to(dtype or sample.dtype).to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return structure.hexdigest()[:_HALF] + samples.hexdigest()[:_HALF]


def same_model(one: str, other: str, dtype: torch.dtype) -> bool:
    """Returns True if two identities are of the same model.

    Weights in float16 are too coarse to compare: only configurations and shapes are, if the models are loaded in it.
    """
    return one == other or (dtype == torch.float16 and one[:_HALF] == other[:_HALF])
