"""The entrypoint: composes one Hydra configuration and walks the pipeline's stages."""

import logging
import os
import sys
from pathlib import Path

# Set before torch and tokenizers start their threads, which do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kldistill.pipeline import compose
from kldistill.runtime.errors import ConfigError, KldistillError

log = logging.getLogger("kldistill")
compose.register()  # on import, since the workers of a sweep import this module and never call main()


def main() -> None:
    """``kldistill`` on the command line (see ``kldistill --help``)."""
    from kldistill.pipeline import sweeps

    sys.argv[1:] = [compose.with_home(argument) for argument in sys.argv[1:]]
    complete = False
    try:
        hydra.main(version_base="1.3", config_path=str(compose.conf_folder()), config_name="config")(_task)()
    finally:
        complete = sweeps.conclude()
    if not complete:
        sys.exit(1)


def _task(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if not OmegaConf.is_missing(hydra_config.job, "num"):
        _member(cfg, folder)
        return
    _speak_up()
    try:
        _run(cfg, folder)
    except KldistillError as error:
        # A mistake of the user's: the message says all, a traceback would hide it.
        log.error("%s", error)
        sys.exit(1)


def _member(cfg: DictConfig, folder: Path) -> None:
    """One run of a sweep. Its failure is written down and goes no further, so the other runs are left alone."""
    from kldistill.pipeline import sweeps

    try:
        _join_submitit()
        _speak_up()
        _run(cfg, folder, again=False)
    except Exception as error:
        log.error("%s: %s: %s", folder.name, type(error).__name__, error)
        _to_file("Where it happened:")
        if os.environ.get("RANK", "0") == "0":
            sweeps.mark_failed(folder, cfg, error)


def _run(cfg: DictConfig, folder: Path, again: bool = True) -> None:
    """Run the pipeline; with ``again=False``, not if ``folder`` holds its finished result already."""
    typed = compose.typed(cfg)
    from transformers.utils import logging as transformers_logging

    from kldistill.pipeline.run import (  # loads torch: not for --help, nor for a configuration that is refused
        is_finished,
        run_pipeline,
    )

    transformers_logging.disable_progress_bar()  # of seconds; the pipeline's own say what takes long
    if not again and is_finished(typed, folder):
        log.info("%s: finished already", folder)
        return
    run_pipeline(typed, folder)


def _to_file(text: str) -> None:
    """Write ``text`` and the traceback of the current exception to the run's log file, not to the console."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), sys.exc_info())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _speak_up() -> None:
    """Of several processes only the main one reports; the others just tell their errors, and whose they are."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return
    os.environ["KLDISTILL_PROGRESS"] = "0"
    logging.getLogger().setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[%(asctime)s][process {rank}][%(levelname)s] - %(message)s"))


def _join_submitit() -> None:
    """Make the tasks of a submitit job the processes of one run, as ``accelerate launch`` would.

    Raises:
        ConfigError: a launcher of processes started a whole sweep in each of them.
    """
    environment = None
    if "submitit" in sys.modules:  # loaded by Hydra's launcher where this is one of its jobs
        import submitit

        environment = submitit.JobEnvironment() if "SUBMITIT_EXECUTOR" in os.environ else None
    if environment is not None:
        if environment.num_tasks > 1:
            # accelerate picks the device by its local rank, so all devices stay visible.
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "A sweep cannot be launched by accelerate. Launch each run by itself, or let the sweep launch the "
            "processes of its runs: hydra/launcher=slurm hydra.launcher.tasks_per_node=N."
        )


if __name__ == "__main__":
    main()
