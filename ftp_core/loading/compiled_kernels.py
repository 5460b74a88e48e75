"""Bounds the memory of kernels that oneDNN compiles on a CPU, one for each shape of a product in low precision."""

from __future__ import annotations

import os

# Both caches, of oneDNN and of torch's layer above it, hold 1,024 kernels by default, most of a megabyte each, and are
# filled where prompts and kept counts vary, as in training. A quarter is about what a pass asks for.
MOST_KEPT = 256
_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Lets this process keep at most `MOST_KEPT` kernels, unless its environment says how many.

    It is heard if no such product was computed before. Kernels that are not kept are compiled again, in milliseconds.
    """
    for name in _VARIABLES:
        os.environ.setdefault(name, str(MOST_KEPT))
