"""Conditions of a latency profile: hardware, software and model. Elsewhere another one must be measured."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from ftp_core.cpu_limits import n_cores
from ftp_core.errors import CoreError
from ftp_core.loading.identity import model_identity
from ftp_core.skipping.attention import kernel_name
from ftp_core.skipping.dispatch import device_of_inputs
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of

_PROGRAM = "ftp-search"
_UNKNOWN = "unknown"
_CPU_INFO = Path("/proc/cpuinfo")


class ProfileError(CoreError, ValueError):
    """A latency profile does not hold for what it is asked."""


@dataclass(frozen=True)
class Conditions:
    """Hardware, software and model of a latency profile.

    Attributes:
        cpu: Name of the processor.
        cores: Cores that this process may use.
        cpu_capability: Vector instructions that torch uses.
        threads: Threads that torch computes with.
        gpu: Name of the GPU that the model is on; "none" if it is on the CPU.
        torch: Version of torch.
        transformers: Version of transformers.
        program: Version of this program.
        model: Identity of the model (`ftp_core.loading.identity`), and what stands in for halves that tokens skip.
        dtype: Type of the model's weights.
        kernel: Name of the model's attention function.
    """

    cpu: str
    cores: int
    cpu_capability: str
    threads: int
    gpu: str
    torch: str
    transformers: str
    program: str
    model: str
    dtype: str
    kernel: str

    def fingerprint(self, batch: int, length: int) -> str:
        """SHA-256 that names a profile of inputs of one shape under these conditions."""
        values = {**asdict(self), "batch": batch, "length": length}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def differences(self, here: Conditions) -> tuple[str, ...]:
        """The fields that differ here, a phrase each."""
        there, now = asdict(self), asdict(here)
        return tuple(f"{name} {there[name]!r}, here {now[name]!r}" for name in there if there[name] != now[name])

    def check(self, here: Conditions) -> None:
        """Raise `ProfileError` that names the differences, unless the conditions here are the same."""
        differences = self.differences(here)
        if differences:
            raise ProfileError(
                f"The latency profile was measured under other conditions ({'; '.join(differences)}), so that its "
                "times do not hold here: measure one here with `ftp-search profile`."
            )


def profile_conditions(model: SkippingModel | PreTrainedModel) -> Conditions:
    """The conditions here and now, for a dense model as it is loaded."""
    base = model.model if isinstance(model, SkippingModel) else model
    device, maps = device_of_inputs(base), substitutes_of(base)
    return Conditions(
        cpu=_cpu_name(),
        cores=n_cores(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        torch=torch.__version__,
        transformers=transformers.__version__,
        program=_program_version(),
        model=model_identity(base) + ("" if maps is None else f", substitutes of rank {maps.rank}"),
        dtype=str(base.dtype).removeprefix("torch."),
        kernel=kernel_name(base),
    )


def _cpu_name() -> str:
    try:
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or _UNKNOWN


def _program_version() -> str:
    try:
        return version(_PROGRAM)
    except PackageNotFoundError:
        return _UNKNOWN
