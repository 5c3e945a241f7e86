"""Running out of memory is a full machine, not a broken one: it becomes `Exhausted`, and the process lives.

What an evaluation has freed goes back to the system: glibc would keep gigabytes of it for the next one.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tutelage.domain.errors import Exhausted

RETRY_AFTER_S = 5.0
_TOLD = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""By the CPU's allocator, by CUDA outside of torch's allocator, and by its libraries (cuBLAS), for which torch has no
class of their own."""
_TOLD_WHOLE = ("std::bad_alloc", "could not create a primitive")
"""By C++, and by oneDNN, which names no reason; of products that it does not know it says more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device or the machine has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and (str(error) in _TOLD_WHOLE or any(words in str(error) for words in _TOLD))
    )


def out_of_memory() -> Exhausted:
    """What a caller is told."""
    return Exhausted("out of memory on the student's device", retry_after_s=RETRY_AFTER_S)


@contextmanager
def memory_faults() -> Iterator[None]:
    """Turns torch's and Python's out-of-memory errors into Exhausted, and gives cached memory back."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        exhausted = out_of_memory()
    else:
        return
    # Outside of the handler, so that the traceback no longer holds the tensors.
    free_cached()
    raise exhausted


def free_cached() -> None:
    """Gives back what nothing refers to any more, on a GPU to its driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        # Another libc, which has its own ways.
        return None


_TRIM = _find_trim()


def give_back_memory() -> None:
    """Returns freed pages to the system where the C library would keep them; some milliseconds."""
    if _TRIM is not None:
        _TRIM(0)
