"""What the library was built with and what it runs on; the thread count."""

from . import _checks, _core


def info():
    """What runs here and why.

    Returns:
        A dict: ``version``; ``isa``, the kernels in use, and ``isa_available``, those that this
        processor can run (the environment variable FLATSTEP_ISA chooses among them); ``threads``;
        ``openmp``; ``blas``, where matrix products are computed; ``cuda``, a dict of ``built``,
        ``archs``, ``devices`` and ``why_not``.

    Raises:
        ValueError: FLATSTEP_ISA names kernels that cannot run here.
    """
    return _core.info()


def set_num_threads(n):
    """Uses ``n`` threads, at least 1, in every later call. No result depends on it."""
    _core.set_num_threads(_checks.integer(n, "threads"))


def get_num_threads():
    """The number of threads; at first what OpenMP offers (OMP_NUM_THREADS)."""
    return _core.get_num_threads()


def synchronize(device="cuda"):
    """Waits until a device has done everything it was given, on every stream.

    Args:
        device: ``"cuda"``, ``"cuda:1"``, or ``"cpu"``, which has nothing to wait for.

    Raises:
        IndexError, ValueError, RuntimeError: the first fault among the calls whose results nobody
            has looked at, such as a target out of range.
        RuntimeError: there is no such device.
    """
    _core.synchronize(_checks.device_index(device))
