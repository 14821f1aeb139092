"""The entrypoint: composes one Hydra configuration and walks the pipeline's stages."""

import difflib
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Set before torch and tokenizers start their threads, which do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kldistill.pipeline import compose
from kldistill.runtime.errors import ConfigError, FolderInUseError, KldistillError, Stopped
from kldistill.runtime.faults import naming
from kldistill.runtime.files import write_text
from kldistill.runtime.secrets import Formatter, redact, shown

_UNFORESEEN = "This should not have happened (see docs/troubleshooting.md, at its end)."
log = logging.getLogger("kldistill")
compose.register()  # on import, since the workers of a sweep import this module and never call main()


def main() -> None:
    """``kldistill`` on the command line (see ``kldistill --help``)."""
    from kldistill.pipeline import command, sweeps

    sys.argv[1:] = command.ordered([compose.with_home(argument) for argument in sys.argv[1:]])
    _listen()
    complete = False
    try:
        command.inspect(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(compose.conf_folder()), config_name="config")(_task)()
    except KldistillError as error:
        print("[kldistill][ERROR] -", shown(str(error)), file=sys.stderr)
        sys.exit(1)
    except Exception:
        print(_UNFORESEEN, shown(traceback.format_exc()), sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        log.error("Stopped %s", error.args[0] if error.args else "by the keyboard.")
        sys.exit(128 + (error.args[1] if len(error.args) > 1 else signal.SIGINT))
    finally:
        complete = sweeps.conclude()
    if not complete:
        sys.exit(1)


def _listen() -> None:
    """Let SIGINT and SIGTERM end the run in order: what is half done is kept for the next time, and run.json says so.

    A job of submitit's has its own way with signals, and queues itself again.
    """

    def stop(number: int, _frame: object) -> None:
        raise Stopped(f"by {signal.Signals(number).name}. The same command goes on with what is finished.", number)

    if "SUBMITIT_EXECUTOR" not in os.environ and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)


def _task(cfg: DictConfig) -> Any:
    """One run, as Hydra calls it. Gives back the figures that ``objective`` names, for a sweeper that asks."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if not OmegaConf.is_missing(hydra_config.job, "num"):
        return _member(cfg, folder)
    _speak_up()
    try:
        return _run(cfg, folder)
    except KldistillError as error:
        # A mistake of the user's: the message says all, a traceback would hide it.
        log.error("%s", error)
        sys.exit(1)
    except Exception:
        # Here and not by Hydra, whose way to the console leaves out neither secrets nor what a terminal obeys.
        log.exception(_UNFORESEEN)
        sys.exit(1)


def _member(cfg: DictConfig, folder: Path) -> Any:
    """One run of a sweep. Its failure is written down and goes no further, so the other runs are left alone.

    Returns:
        The figures that ``objective`` names; of a run that failed, what the sweeper knows as such.
    """
    from kldistill.pipeline import sweeps

    try:
        _join_submitit()
        _speak_up()
        return _run(cfg, folder, again=False)
    except Exception as error:
        log.error("%s: %s: %s", folder.name, type(error).__name__, error)
        _to_file("Where it happened:")
        # Of a folder that another process is running in, the record is that process's.
        if os.environ.get("RANK", "0") == "0" and not isinstance(error, FolderInUseError):
            sweeps.mark_failed(folder, cfg, error)
        return no_objective(OmegaConf.select(cfg, "objective"), HydraConfig.get().sweeper.get("_target_", ""))


def _run(cfg: DictConfig, folder: Path, again: bool = True) -> Any:
    """Run the pipeline; with ``again=False``, not if ``folder`` holds its finished result already."""
    if os.environ.get("RANK", "0") == "0":
        with naming("the run's folder"):
            _record_hydra(cfg, folder / ".hydra")
    typed = compose.typed(cfg)
    from transformers.utils import logging as transformers_logging

    from kldistill.pipeline.run import (  # loads torch: not for --help, nor for a configuration that is refused
        is_finished,
        run_pipeline,
    )
    from kldistill.pipeline.run_record import run_record

    transformers_logging.disable_progress_bar()  # of seconds; the pipeline's own say what takes long
    logging.captureWarnings(True)  # Python's, and those of transformers: into the run's log like everything else
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if not again and is_finished(typed, folder):
        log.info("%s: finished already", folder)
        metrics = run_record(folder)["metrics"]
    else:
        metrics = run_pipeline(typed, folder)
    return objective(typed.objective, metrics) if os.environ.get("RANK", "0") == "0" else None


def objective(names: Any, metrics: Mapping[str, float]) -> float | list[float] | None:
    """The final figures that a sweeper optimises: one for a name, several for a list of names, None for None.

    Raises:
        ConfigError: the run has no such figure; names those that look like it.
    """
    if names is None:
        return None
    if not isinstance(names, str):
        return [float(objective(name, metrics)) for name in names]  # type: ignore[arg-type]
    if names not in metrics:
        near = ", ".join(difflib.get_close_matches(names, metrics, n=3, cutoff=0.5)) or "see its run.json"
        raise ConfigError(f"objective={names}: this run has no such figure. Near it are: {near}.")
    return float(metrics[names])


def _record_hydra(cfg: DictConfig, folder: Path) -> None:
    """Write what Hydra was told and made of it, as Hydra itself would, but with nothing secret in it."""
    hydra_config = OmegaConf.create({"hydra": OmegaConf.to_container(HydraConfig.get(), resolve=False)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, node in (
        ("config.yaml", cfg),
        ("hydra.yaml", hydra_config),
        ("overrides.yaml", HydraConfig.get().overrides.task),
    ):
        write_text(folder / name, redact(OmegaConf.to_yaml(node)))


def no_objective(names: Any, sweeper: str) -> float | list[float] | None:
    """What a run that failed gives back: not-a-number for each figure, and nothing to Optuna's sweeper.

    That one (1.3.0) counts a run that gives no number as a failed trial, and ends the sweep at not-a-number.

    Args:
        names: ``objective``.
        sweeper: its ``_target_``.
    """
    if names is None or ".hydra_optuna_sweeper." in sweeper:
        return None
    return math.nan if isinstance(names, str) else [math.nan] * len(names)


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
        handler.setFormatter(Formatter(f"[%(asctime)s][process {rank}][%(levelname)s] - %(message)s"))


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
