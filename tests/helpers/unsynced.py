"""Files of tests need not outlive a power cut: to wait for the disk takes as long as all that is computed."""

import os


def no_sync() -> None:
    """In this process and its forks ``os.fsync`` only looks whether there is such a file."""
    os.fsync = lambda file: os.fstat(file) and None
