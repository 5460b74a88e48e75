"""Models whose weights several processes share."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ftp_core.loading.allocator import return_freed_memory
from search.errors import EvaluationError
from search.evaluators.mapped_arrays import MappedArrays

# Its hooks cannot be pickled, and workers do not need what they capture.
_CAPTURING = "transformers.utils.output_capturing"


class SharedModel:
    """A module as two things: a pickled skeleton, and the bytes of its tensors as numpy arrays.

    Where the arrays lie in shared memory, as those do that come from Ray's object store, the tensors of the module
    that `load` makes lie there, too. That memory is read-only: to write to such a tensor ends the process.

    Args:
        module: A module; its tensors of any device and type, also those that are neither parameters nor saved buffers.
        on_one_machine: Whether only processes of this machine load it. Then, on Linux, the arrays lie in memory that
            these map by its name, and so do from now on those tensors of the module itself that are on the CPU: the
            machine holds one copy of them, as long as this object lives.

    Raises:
        EvaluationError: The module cannot be pickled.
    """

    def __init__(self, module: nn.Module, on_one_machine: bool = False) -> None:
        skeleton = io.BytesIO()
        pickler = _TensorPickler(skeleton)
        try:
            pickler.dump(module)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EvaluationError(
                f"The model cannot be sent to workers: {error}. Expected one that can be pickled: remove hooks and "
                "patched methods."
            ) from error
        self._skeleton = skeleton.getvalue()
        self._arrays: Sequence[NDArray[np.uint8]] = [_bytes_of(tensor) for tensor in pickler.tensors]
        if on_one_machine and hasattr(os, "memfd_create"):
            self._arrays = MappedArrays(self._arrays)
            for tensor, array in zip(pickler.tensors, self._arrays.private(), strict=True):
                if tensor.device.type == "cpu":
                    tensor.data = _tensor_over(array, tensor.dtype, tensor.shape)
            return_freed_memory()

    @classmethod
    def of(cls, module: nn.Module, on_one_machine: bool) -> SharedModel:
        """Returns the shared form of a module, made once as long as the module lives."""
        known = _shared.get(module)
        if known is None or on_one_machine != isinstance(known._arrays, MappedArrays):
            known = _shared[module] = cls(module, on_one_machine)
        return known

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(array.nbytes for array in self._arrays)

    def load(self) -> nn.Module:
        """The module, its tensors on the CPU, over the memory of the arrays."""
        module: nn.Module = _TensorUnpickler(io.BytesIO(self._skeleton), self._arrays).load()
        return module


class _TensorPickler(pickle.Pickler):
    """Pickles everything but tensors, whose bytes it collects; one that occurs twice (tied weights) is taken once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        # Kept so that no id is used again.
        self.tensors: list[Tensor] = []
        self._keys: dict[int, Any] = {}

    def persistent_id(self, value: Any) -> Any:
        """The key of a tensor; None for any other value."""
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._keys:
            is_parameter = isinstance(value, nn.Parameter)
            self._keys[id(value)] = (len(self.tensors), value.dtype, value.shape, is_parameter, value.requires_grad)
            self.tensors.append(value)
        return self._keys[id(value)]

    def reducer_override(self, value: Any) -> Any:
        """Leaves out the hooks by which transformers captures attentions and hidden states."""
        if isinstance(value, FunctionType) and value.__module__ == _CAPTURING:
            return _hook_of_nothing, ()
        return NotImplemented


def _hook_of_nothing() -> Callable[..., None]:
    return _ignore


def _ignore(*_: Any) -> None:
    pass


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arrays: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__(file)
        self._arrays = arrays
        self._tensors: dict[int, Tensor] = {}

    def persistent_load(self, key: Any) -> Tensor:
        """The tensor of a key."""
        place, dtype, shape, is_parameter, requires_grad = key
        if place not in self._tensors:
            tensor = _tensor_over(self._arrays[place], dtype, shape)
            if is_parameter:
                tensor = nn.Parameter(tensor, requires_grad)
            self._tensors[place] = tensor
        return self._tensors[place]


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, since numpy knows no bfloat16; not copied where they lie in order on the CPU."""
    found: NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return found


def _tensor_over(array: NDArray[np.uint8], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """A tensor over the memory of an array."""
    if not len(array):
        # It has no strides from which torch could tell how to see it as another type.
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        # Torch warns of memory that may not be written to.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).view(dtype).reshape(shape)


# Of modules that live, so that each is copied to shared memory once.
_shared: WeakKeyDictionary[nn.Module, SharedModel] = WeakKeyDictionary()
