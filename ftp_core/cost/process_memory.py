"""Peak memory of this process, as the system counts it."""

from __future__ import annotations

import resource
import sys
from bisect import bisect
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ftp_core.memory_limits import bytes_within_limits

_STATUS = Path("/proc/self/status")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process, what it shares with others included.

    On a GPU torch's, since the last `reset_peak`; else that of the process, since it became this program.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if known := _status():
        return known["VmHWM"]
    # macOS counts in bytes, others in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def own_peak_bytes(device: torch.device) -> int:
    """Peak memory of this process beside what it shares with others: libraries, and weights in shared memory.

    What is shared counts as it is now; where the system does not tell it apart, it is included.
    """
    known = {} if device.type == "cuda" else _status()
    return max(0, peak_bytes(device) - known.get("RssFile", 0) - known.get("RssShmem", 0))


def reset_peak(device: torch.device) -> None:
    """Lets peak memory count anew, on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def resident_bytes() -> tuple[int, int]:
    """Memory of this process, and the part of it that others do not share; zeros where the system does not tell."""
    known = _status()
    shared = known.get("RssFile", 0) + known.get("RssShmem", 0)
    return known.get("VmRSS", 0), known.get("VmRSS", 0) - shared


def own_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors on the CPU that others do not share: those that no file lies behind, nor memory with a name."""
    try:
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        lines = []
    mapped = sorted(tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[4] != "0")
    own = 0
    for tensor in tensors:
        place = bisect(mapped, (tensor.data_ptr(), sys.maxsize)) - 1
        is_mapped = place >= 0 and tensor.data_ptr() < mapped[place][1]
        own += 0 if is_mapped else tensor.nbytes
    return own


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still have, of a GPU or of its machine or container; None if that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = (_sizes(Path("/proc/meminfo")).get("MemAvailable"), bytes_within_limits())
    return min((n_bytes for n_bytes in known if n_bytes is not None), default=None)


def _status() -> dict[str, int]:
    """Sizes of this process by their Linux names, in bytes; empty where the system does not tell them."""
    known = _sizes(_STATUS)
    return known if "VmHWM" in known else {}


def _sizes(path: Path) -> dict[str, int]:
    """The lines of a file of /proc that are sizes, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.removesuffix(":"): 1024 * int(size) for name, size, _ in fields}
