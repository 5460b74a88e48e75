"""Arrays in memory that the processes of one machine share by its name."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

# Vector instructions read whole cache lines.
_ALIGNMENT = 64


class MappedArrays(Sequence[NDArray[np.uint8]]):
    """Arrays of bytes that are sent to other processes of this machine as the name of the memory where they lie.

    The memory has no file, so that nothing is left of it when the process that made it ends, however it does. Others
    can open it as long as that process has these arrays, and keep what they opened for as long as they want. Linux
    alone has such memory.

    Args:
        arrays: Arrays that are copied, one after the other.

    Raises:
        OSError: There is too little memory; when they are first read elsewhere, that the process has ended.
    """

    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        self._sizes = [array.nbytes for array in arrays]
        file = os.memfd_create("ftp-search weights")
        self._name = f"/proc/{os.getpid()}/fd/{file}"
        weakref.finalize(self, os.close, file)
        os.ftruncate(file, max(1, self._end))
        for array, place in zip(arrays, self._mapped("r+"), strict=True):
            place[:] = array
        self._here: list[NDArray[np.uint8]] | None = None

    def private(self) -> list[NDArray[np.uint8]]:
        """The arrays as this process may write to them; what it writes, it alone sees."""
        return self._mapped("c")

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[NDArray[np.uint8]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        """The array at a place, which must not be written to."""
        if self._here is None:
            self._here = self._mapped("r")
        return self._here[place]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": None}

    @property
    def _end(self) -> int:
        return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in self._sizes)

    def _mapped(self, mode: Any) -> list[NDArray[np.uint8]]:
        whole = np.memmap(self._name, np.uint8, mode, shape=(max(1, self._end),)).view(np.ndarray)
        found, start = [], 0
        for size in self._sizes:
            found.append(whole[start : start + size])
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        return found
