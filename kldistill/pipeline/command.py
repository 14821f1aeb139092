"""What the command line asks for, checked before Hydra makes a folder and before anything slow is imported."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kldistill.pipeline import compose, keys
from kldistill.runtime.errors import ConfigError, KldistillError

# What Hydra may make of its own part of the configuration: its plugins, our callbacks, Python's handlers of logs.
_HYDRAS_OWN = (
    "hydra._internal.core_plugins.",
    "hydra_plugins.",
    "kldistill.pipeline.sweeps.",
    "optuna.samplers.",
)
PLAN = "--plan"  # tell what the run will need, and run nothing
_LOGGING = ("logging.", "kldistill.runtime.secrets.", "hydra.", "colorlog.", "rich.")


def ordered(argv: Sequence[str]) -> list[str]:
    """The same words with the overrides first, then the flags with their values.

    Hydra reads overrides in one run only: of ``a=1 -m b=2`` it would say that ``b=2`` is unknown.
    """
    options = get_args_parser()._option_string_actions
    overrides: list[str] = []
    flags: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        option = options.get(word)
        if option is None or option.nargs == 0 or not rest or rest[0].startswith("-"):
            continue
        if option.nargs is None or rest[0] in (option.choices or ()):  # a value, or one that may be left out
            flags.append(rest.pop(0))
    return overrides + flags


def inspect(argv: Sequence[str]) -> None:
    """Refuse a command that cannot work, and make the user's folder of presets known. No folder has been made yet.

    A sweep is looked at by its keys alone: each of its runs is checked when it starts, and fails for itself.

    Args:
        argv: the words after ``kldistill``.

    Raises:
        KldistillError: one line that names the word or the key.
    """
    plan = [word for word in argv if word == PLAN or word.startswith(f"{PLAN}=")]
    args = get_args_parser().parse_args([word for word in argv if word not in plan])
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir {args.config_dir}: there is no such folder.")
    if args.config_path is not None:
        raise ConfigError("--config-path takes the place of all presets; add a folder of your own with --config-dir.")
    compose.register(None if args.config_dir is None else Path(args.config_dir).absolute())
    if args.help:
        from kldistill.pipeline import reference

        print("\n".join(map(reference.told, args.overrides)) if args.overrides else reference.overview(), end="")
        sys.exit(0)
    if args.hydra_help or args.info or args.shell_completion:
        return
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word!r}: is no KEY=VALUE.{_choices_of(word)}")
    overrides: Sequence[Override] = []
    try:
        overrides = OverridesParser.create().parse_overrides(list(args.overrides))
        _refuse_second_choice(overrides)
        cfg = _composed(args, overrides)
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: {_unread(str(error.override), str(error))}") from error
    except (HydraException, OmegaConfBaseException):
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in plan]  # or Hydra would say that it knows no --plan
        return  # Hydra will say it, with all its detail
    except KldistillError:
        raise
    except Exception as error:  # Hydra meets words that it did not expect (model=null, an empty key) with bare errors
        raise ConfigError(f"{_culprit(args, overrides)}: Hydra cannot read this ({_told(error)}).") from error
    with open_dict(cfg):
        hydra = cfg.pop("hydra")
    _refuse_trust_of_files(cfg, hydra, overrides)
    _refuse_calls_by_hydra(OmegaConf.to_container(hydra), "hydra")
    keys.refuse_unknown(cfg)
    if not args.multirun and not args.cfg:
        typed = compose.typed(cfg)
        from kldistill.pipeline.checks import check, check_surroundings  # loads torch

        check(typed)
        check_surroundings(typed)
        if plan:
            from kldistill.pipeline import estimate

            print(estimate.told(typed, _rate(plan[-1])), end="")
            sys.exit(0)
    if plan:
        raise ConfigError(f"{PLAN} tells of one run: leave -m and --cfg out.")


def _rate(word: str) -> float | None:
    """FLOP a second of ``--plan=RATE``; None for ``--plan`` alone."""
    text = word.partition("=")[2]
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ConfigError(f"{word}: is no number of FLOP a second, such as {PLAN}=2e14.")
    return rate


def _composed(args: Any, overrides: Sequence[Override]) -> DictConfig:
    """The configuration of the command; of a sweep, that of its first run."""
    words = [word for override in overrides if (word := _first(override)) is not None]
    if args.config_dir is not None:
        words.append(f"hydra.searchpath=['file://{Path(args.config_dir).absolute()}']")
    name = args.config_name or "config"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
            choices = [word for word in words if compose.is_choice(word)]
            keys.refuse_deletions(overrides, lambda: hydra_compose(name, overrides=choices), compose.is_choice)
            try:
                return hydra_compose(name, overrides=words, return_hydra_config=True)
            except ConfigCompositionException as error:
                if (told := str(error).splitlines()[0]).startswith("Could not delete '"):
                    raise ConfigError(
                        f"{told} of the configuration: take the ~ out, and choose with GROUP=NAME."
                    ) from error
                _explain(hydra_compose(name, overrides=choices), overrides)
                raise
    finally:
        GlobalHydra.instance().clear()


def _refuse_second_choice(overrides: Sequence[Override]) -> None:
    """Every group has its choice in the configuration, ``experiment`` too: ``+`` would add another. ConfigError."""
    for override in overrides:
        group, word = override.key_or_group, str(override.input_line)
        if word.startswith("+") and not word.startswith("++") and (compose.conf_folder() / group).is_dir():
            plain = word.removeprefix("+")
            raise ConfigError(f"{word}: {group} is in the configuration already, so leave the + out: {plain}")


def _unread(word: str, told: str) -> str:
    """Why Hydra's grammar does not read an override, with the quoted one if that is text then."""
    key, _, value = word.partition("=")
    why = f"Hydra cannot read this ({' '.join(told.splitlines()[:1])})."
    if not value or value[0] in "[{\"'":
        return why
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_overrides([quoted])
    except HydraException:
        return why
    return f"{why} As text it has quotes of its own, inside those of the shell: {shlex.quote(quoted)}"


def _culprit(args: Any, overrides: Sequence[Override]) -> str:
    """The first override that cannot be read by itself; all of them if there is none."""
    for override in overrides:
        try:
            _composed(args, [override])
        except (HydraException, OmegaConfBaseException, KldistillError):
            continue
        except Exception:
            return repr(override.input_line)
    return " ".join(args.overrides)


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def _explain(base: DictConfig, overrides: Sequence[Override]) -> None:
    """Raise ``ConfigError`` for the first override whose key the configuration does not have."""
    known = keys.known_keys(base)
    for override in overrides:
        key = override.key_or_group
        if compose.is_choice(override.input_line or "") or key.startswith("hydra."):
            continue
        there = OmegaConf.select(base, key, throw_on_missing=False, default=_explain)
        if isinstance(there, ListConfig) and isinstance(value := override.value(), str | int | float):
            raise ConfigError(f"{key}={value}: is a list, also where it has one item: '{key}=[{value}]'")
        if there is _explain:
            from kldistill.pipeline import reference

            if others := reference.presets_with(key):
                raise ConfigError(f"{key}: is a key of {' and of '.join(others)}, which the command does not choose.")
            raise ConfigError(f"{key}: there is no such key.{keys.did_you_mean(key, known)}")


def _first(override: Override) -> str | None:
    """An override as one run has it: the first of a sweep's choices; none for a range that a sweeper searches."""
    line = override.input_line
    if not override.is_sweep_override():
        return line
    try:
        value = next(iter(override.sweep_string_iterator()))
    except (HydraException, StopIteration, TypeError, AssertionError):
        return None
    return f"{str(line).split('=', 1)[0]}={value}"


def _choices_of(word: str) -> str:
    """`` Did you mean experiment=quickstart?`` for the name of a preset."""
    for folder in [compose.conf_folder(), *compose.own_folders()]:
        paths = (path for path in folder.glob("*/*.yaml") if path.stem == word)
        for path in sorted(paths, key=lambda path: path.parent.name != "experiment"):
            return f" Did you mean {path.parent.name}={word}?"
    return " See kldistill --help."


def _refuse_trust_of_files(cfg: DictConfig, hydra: DictConfig, overrides: Sequence[Override]) -> None:
    """Whose code runs is the user's word, on the command line. Raises ``ConfigError``."""
    said: Any = []
    for override in overrides:
        if override.key_or_group == "runtime.trust":
            said = override.value() or []
    # An interpolation would take a file's word.
    plain = isinstance(said, list) and all(isinstance(name, str) and "$" not in name for name in said)
    swept = any(str(key).lstrip("+").startswith("runtime") for key in hydra.sweeper.get("params") or {})
    if swept or not plain or cast(Any, OmegaConf.to_container(cfg.runtime))["trust"] != said:
        raise ConfigError(
            "runtime.trust: comes from a file. Code of another package runs only where you say so yourself, on the "
            "command line: runtime.trust=[mypkg]."
        )


def _refuse_calls_by_hydra(node: Any, key: str) -> None:
    """Hydra makes its launcher, sweeper, callbacks and logs of what its configuration names. Raises ``ConfigError``."""
    for where, name, value in _walk(node, key):
        allowed = {"_target_": _HYDRAS_OWN, "()": _LOGGING, "class": _LOGGING}.get(name)
        if allowed is not None and not str(value).startswith(allowed):
            raise ConfigError(f"{where}={value!r}: a configuration may not name this here.")


def _walk(node: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{key}.{name}", str(name), value
            yield from _walk(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _walk(value, f"{key}[{index}]")
