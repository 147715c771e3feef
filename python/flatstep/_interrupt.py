"""Ctrl-C in the first moments of the command line, while its modules are imported.

The package imports this first. Until cli.main is there to take KeyboardInterrupt, SIGINT ends
the process in one line, exit code 130. Where another program imports the package, nothing changes.
"""

import os
import signal
import sys
import threading


def _leave(number, frame):
    # Not by an exception: NumPy makes an ImportError of it, callbacks of Python's pass it over.
    try:
        os.write(2, b"flatstep: error: interrupted\n")
    finally:
        os._exit(128 + number)


def imported():
    """From here on SIGINT is KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command_line():
    """Whether this process is `python -m flatstep`, or the script of that name."""
    arguments = getattr(sys, "argv", None) or [""]
    if arguments[0] == "-m":  # so it is until the module's package has been imported
        return sys.orig_argv[-len(arguments) :][:1] == ["flatstep"]
    program = sys._getframe()
    while program.f_back is not None:
        program = program.f_back
    named = os.path.basename(arguments[0]) == "flatstep"
    return named and "flatstep.cli" in program.f_code.co_names


def _install():
    if (
        _is_command_line()
        and threading.current_thread() is threading.main_thread()
        # else it is ignored, as by `nohup` and behind the `&` of a script
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _leave)


_install()
