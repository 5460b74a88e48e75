"""Models whose weights several processes share."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.errors import EvaluationError

# Its hooks cannot be pickled, and workers do not need what they capture.
_CAPTURING = "transformers.utils.output_capturing"


class SharedModel:
    """A module as two things: a pickled skeleton, and the bytes of its tensors as numpy arrays.

    Where the arrays lie in shared memory, as those do that come from Ray's object store, the tensors of the module
    that `load` makes lie there, too. That memory is read-only: to write to such a tensor ends the process.

    Args:
        module: A module; its tensors of any device and type, also those that are neither parameters nor saved buffers.

    Raises:
        EvaluationError: The module cannot be pickled.
    """

    def __init__(self, module: nn.Module) -> None:
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
        self._arrays = pickler.arrays

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
        self.arrays: list[NDArray[np.uint8]] = []
        # The tensors are kept so that no id is used again.
        self._known: dict[int, tuple[Tensor, Any]] = {}

    def persistent_id(self, value: Any) -> Any:
        """The key of a tensor; None for any other value."""
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._known:
            key = (len(self.arrays), value.dtype, value.shape, isinstance(value, nn.Parameter), value.requires_grad)
            self._known[id(value)] = value, key
            # As bytes, since numpy knows no bfloat16.
            self.arrays.append(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return self._known[id(value)][1]

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
    def __init__(self, file: io.BytesIO, arrays: list[NDArray[np.uint8]]) -> None:
        super().__init__(file)
        self._arrays = arrays
        self._tensors: dict[int, Tensor] = {}

    def persistent_load(self, key: Any) -> Tensor:
        """The tensor of a key."""
        place, dtype, shape, is_parameter, requires_grad = key
        if place not in self._tensors:
            with warnings.catch_warnings():
                # Torch warns of memory that may not be written to.
                warnings.simplefilter("ignore", UserWarning)
                tensor = torch.from_numpy(self._arrays[place])
            # An empty array has no strides from which torch could tell how to see it as another type.
            tensor = tensor.view(dtype).reshape(shape) if len(tensor) else torch.empty(shape, dtype=dtype)
            if is_parameter:
                tensor = nn.Parameter(tensor, requires_grad)
            self._tensors[place] = tensor
        return self._tensors[place]
