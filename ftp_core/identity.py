"""Names a model by what it is, so that what was made for one model is not used with another."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

_SAMPLES = 64
# What says where a model came from or how it was loaded, not what it computes.
_CIRCUMSTANCES = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "architectures")


def model_identity(model: PreTrainedModel) -> str:
    """A hash over configuration and a sample of every weight: quick for large models, the same in every precision.

    Weights are compared as bfloat16, to which float32 rounds in one way only.

    Args:
        model: A dense model.
    """
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _CIRCUMSTANCES}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        sample = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES]
        digest.update(sample.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
