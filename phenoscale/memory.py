"""What a process that moves large arrays tells the allocator."""

from __future__ import annotations

import ctypes
import functools
import gc

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # mallopt(3)
_ARENAS = 4


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep temporaries of up to 32 MiB instead of returning them to the kernel.

    Without it each step of training pays thousands of page faults (measured: 3,072 a step, 10% of
    its time), and so does each image that is decoded. 32 MiB is the largest threshold that glibc
    takes. Kept memory is per arena, of which threads that come and go would open eight a core and
    leave each of them full: so there are few. Elsewhere than on glibc nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def return_freed_memory() -> None:
    """Gives the kernel back what the last trial left, so that trials of one process do not add up.

    Takes milliseconds. Elsewhere than on glibc only garbage is collected.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
