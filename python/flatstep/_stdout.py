"""Standard output whose errors say that it is theirs: of the system's "No space left on device" a
reader could not tell which file it is about."""

import os
import sys

from .errors import RunFailed


class StandardOutput:
    """A context in which sys.stdout raises RunFailed, with one clear line, where the system cannot
    take what is printed; BrokenPipeError where its reader has gone.

    What could not be written is then dropped: Python would try, and complain, again when it ends.
    """

    def __enter__(self):
        self._stream, self._failed = sys.stdout, None
        sys.stdout = self
        return self

    def __exit__(self, *exception):
        sys.stdout = self._stream

    def write(self, text):
        """As of a text file."""
        return self._try(self._stream.write, text)

    def flush(self):
        """As of a file. Raises again what a caller of write, argparse for example, passed over."""
        self._try(self._stream.flush)

    def _try(self, call, *arguments):
        try:
            if self._failed is not None:
                raise self._failed
            return call(*arguments)
        except OSError as error:
            if self._failed is None:
                self._failed = error
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise RunFailed(f"standard output cannot be written: {error.strerror}") from error

    def __getattr__(self, name):
        return getattr(self._stream, name)
