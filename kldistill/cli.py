"""The entrypoint: composes one Hydra configuration and walks the pipeline's stages."""

import logging
import os
import sys

# Set before torch and tokenizers start their threads, which do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kldistill import compose
from kldistill.errors import KldistillError

log = logging.getLogger("kldistill")


def main() -> None:
    """``kldistill`` on the command line (see ``kldistill --help``)."""
    compose.register()
    hydra.main(version_base="1.3", config_path=str(compose.conf_folder()), config_name="config")(_task)()


def _task(cfg: DictConfig) -> None:
    from pathlib import Path

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        typed = compose.typed(cfg)
        from transformers.utils import logging as transformers_logging

        from kldistill.pipeline import run  # loads torch: not for --help, nor for a configuration that is refused

        transformers_logging.disable_progress_bar()  # of seconds; the pipeline's own say what takes long
        run(typed, folder)
    except KldistillError as error:
        # A mistake of the user's: the message says all, a traceback would hide it.
        log.error("%s", error)
        if hydra_config.mode == RunMode.MULTIRUN:
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
