"""Every error a user can cause, in one tree.

    EarwitnessError            one sentence: what was given, what is allowed, what to do
    ├── UsageError       (2)   an option, a language or a configuration key is wrong
    ├── SourceError      (3)   the archive cannot be listed, or holds no audio
    ├── DestinationError (4)   the destination is not ours, not writable, or damaged
    ├── LeaseError       (6)   somebody else writes to the destination, or has taken it over
    ├── ModelError       (5)   weights are missing, incomplete or of an unknown format
    └── MediaError             one object cannot be read; becomes a row, never ends a run

The number is the exit code of the command line. Anything else that is raised is a bug, and shows its traceback.
"""

from __future__ import annotations

INTERRUPTED = 130  # the exit code of who was asked to stop: 128 + SIGINT, as shells have it


class EarwitnessError(Exception):
    """Base of every error a user can cause; `str(error)` is one plain sentence."""

    exit_code = 1


class UsageError(EarwitnessError):
    """An option, a language code or a configuration key is wrong."""

    exit_code = 2


class SourceError(EarwitnessError):
    """The archive cannot be listed, or nothing in it is audio."""

    exit_code = 3


class DestinationError(EarwitnessError):
    """The destination is not ours, cannot be written, or is damaged."""

    exit_code = 4


class LeaseError(EarwitnessError):
    """Another process writes to the destination, or took it over while this one was silent."""

    exit_code = 6


class ModelError(EarwitnessError):
    """Weights are missing, incomplete, or in a format we do not read."""

    exit_code = 5


class MediaError(EarwitnessError):
    """One media object cannot be read. `status` is the value of `parts.status` it leads to."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
