"""Chooses the device that a model computes on, and its precision."""

from __future__ import annotations

import torch

from ftp_core.errors import ModelError

AUTO = "auto"
PRECISIONS = ("bfloat16", "float16", "float32")
# Compute capability from which on GPUs multiply bfloat16 by themselves.
_AMPERE = (8, 0)


def device_of(asked: str | torch.device = AUTO) -> torch.device:
    """Returns the device that is asked for.

    Args:
        asked: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for the first GPU that there is, and else the CPU.

    Raises:
        ModelError: torch finds no such device here.
    """
    if asked == AUTO:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        n_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        is_here = (device.index or 0) < n_devices.get(device.type, 0)
    except RuntimeError:
        is_here = False
    if not is_here:
        raise ModelError(
            f"The device is to be {str(asked)!r}, but torch finds no such device here: expected "
            f"{' or '.join(_devices_here())}."
        )
    return device


def dtype_of(asked: str | torch.dtype, device: torch.device, published: torch.dtype | None = None) -> torch.dtype:
    """Returns the precision that is asked for.

    Args:
        asked: `bfloat16`, `float16`, `float32`, or `auto` for the published precision where the device computes it
            natively, and else float32.
        device: Device that the model computes on.
        published: Precision in which the weights were published; None if unknown.

    Raises:
        ModelError: The device cannot compute in this precision.
    """
    if asked == AUTO:
        usable = published is not None and published.is_floating_point and computes_natively(published, device)
        return published if usable and published is not None else torch.float32
    dtype = getattr(torch, asked) if isinstance(asked, str) and asked in PRECISIONS else asked
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"The precision is to be {asked!r}: expected one of {', '.join((AUTO, *PRECISIONS))}.")
    try:
        one_11 = torch.ones(1, 1, dtype=dtype, device=device)
        torch.nn.functional.scaled_dot_product_attention(one_11, one_11, one_11 @ one_11)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"The precision is to be {name_of(dtype)}, but {device} cannot compute in it: expected float32 or "
            f"{AUTO} ({' '.join(str(error).split())[:200]})."
        ) from error
    return dtype


def computes_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """True if a device multiplies matrices of a precision by itself, and not through another one."""
    if dtype == torch.float32:
        return True
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.get_device_capability(device) >= _AMPERE
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        kinds = ("avx512_bf16", "amx_bf16", "bf16") if dtype == torch.bfloat16 else ("amx_fp16",)
        return any(has.get(kind, False) for kind in kinds)
    return device.type == "mps" and dtype == torch.float16


def name_of(dtype: torch.dtype) -> str:
    """The name of a precision, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """The name of a device, such as `NVIDIA H200 (cuda:0)`."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return {"cpu": "The CPU", "mps": "The GPU of this Mac"}.get(device.type, str(device))


def _devices_here() -> list[str]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
