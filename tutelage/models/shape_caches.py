"""The caches that torch's products on a CPU keep of programs by shape, held small: they are half a megabyte each.

oneDNN compiles a product for each shape that it meets, and both it and the layer between it and torch keep a thousand,
the latter in each thread. Lengths of texts give new shapes without end, so that a student would take gigabytes for what
it never asks for again.
"""

from __future__ import annotations

import os

CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "64"}
"""By the variable of the environment."""


def bound_shape_caches() -> None:
    """Sets what the operator has not set; to be called before torch is imported, which reads it."""
    for name, capacity in CAPACITIES.items():
        os.environ.setdefault(name, capacity)
