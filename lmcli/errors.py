"""Every error a user can meet, with the exit code the shell sees.

    LmcliError
    ├── UsageError          2   a flag, value or name that cannot be used
    ├── DataError          65   bad data or a corrupt artifact
    ├── MissingInputError  66   an input that is not there
    ├── DeviceError        69   a device or rendezvous that is not available
    ├── DivergedError      70   training left the finite numbers
    ├── OutOfMemoryError   71   no memory left
    ├── StorageError       74   the disk refused: full, read-only, I/O error
    ├── Interrupted        75   stopped by request; the same command continues
    ├── LockedError        76   another process writes here
    ├── RefusedError       77   refused by policy
    └── MismatchError      78   config, tokenizer or format does not fit

Exit code 0 is done (a closed pipe too), 1 is a bug and keeps its traceback, 130 is Ctrl-C where
nothing is resumable. A message is one sentence: what, where (file:line or flag), what to do.
"""

import errno


class LmcliError(Exception):
    """A mistake or a condition outside lmcli; shown as one sentence, never a traceback."""

    exit_code = 1


class UsageError(LmcliError):
    exit_code = 2


class DataError(LmcliError):
    exit_code = 65


class MissingInputError(LmcliError):
    exit_code = 66


class DeviceError(LmcliError):
    exit_code = 69


class DivergedError(LmcliError):
    exit_code = 70


class OutOfMemoryError(LmcliError):
    exit_code = 71


class StorageError(LmcliError):
    exit_code = 74


class Interrupted(LmcliError):
    exit_code = 75


class LockedError(LmcliError):
    exit_code = 76


class RefusedError(LmcliError):
    exit_code = 77


class MismatchError(LmcliError):
    exit_code = 78


def exit_code(error: BaseException) -> int:
    """The code that the command will exit with for an error that nobody handles."""
    if isinstance(error, LmcliError):
        return error.exit_code
    if isinstance(error, OSError):
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
        return MissingInputError.exit_code if missing else StorageError.exit_code
    return OutOfMemoryError.exit_code if out_of_memory(error) else 1


NO_PRIMITIVE = "could not create a primitive"


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on a CPU or a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        # The last is oneDNN's, which found no room for its code.
        and ("can't allocate memory" in text or "out of memory" in text or text == NO_PRIMITIVE)
    )
