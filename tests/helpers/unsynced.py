"""Files of tests need not outlive a power cut: to wait for the disk takes as long as all that is computed."""

import os
from typing import Any


def no_sync() -> None:
    """In this process and its forks ``os.fsync`` only looks whether there is such a file."""

    def look(file: Any) -> None:
        os.fstat(file if isinstance(file, int) else file.fileno())

    os.fsync = look
