"""The one door from a ``_target_`` of the configuration to a function.

A function or class that a configuration may name says so itself, and says what it is:

    @component("source")
    def my_files(folder: str) -> Source: ...

Each key of the configuration takes one kind alone, so ``corpus.source`` can name a source and nothing else that happens
to be importable. All of this is checked before anything is called. There is no list of components beside this mark.

Components of other packages are found too, once the user trusts the package: by ``runtime.trust=[mypkg]`` on the
command line, or by installing a package that asks for it with an entry point in the group ``kldistill.components``
(``mypkg = "mypkg"``). To find a function is to import its module, and so to run it: no preset can ask for that.
"""

import dataclasses
import importlib.metadata
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import hydra.utils
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kldistill.runtime.errors import ConfigError

Kind = Literal["model", "source", "init", "loss", "suite"]
_WHAT: dict[Kind, str] = {
    "model": "a maker of a model",
    "source": "a source of text (it gives a kldistill.corpus.documents.Source)",
    "init": "an initialisation of rows",
    "loss": "a loss",
    "suite": "a suite of tasks",
}
# What the stages hand over, so that the configuration cannot: how many arguments by place, and which by name.
_GIVEN: dict[Kind, tuple[int, tuple[str, ...]]] = {
    "model": (1, ("say",)),
    "source": (0, ()),
    "init": (3, ()),
    "loss": (3, ()),
    "suite": (0, ()),
}
_MARK = "__kldistill_component__"
ENTRY_POINTS = "kldistill.components"
_trusted = {"kldistill"}
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mark:
    """What a component says of itself.

    Attributes:
        kind: which keys may name it.
        facts: what its stage must know before it is called (see ``kldistill.losses.facts``).
        given: arguments by place that its stage hands over.
    """

    kind: Kind
    facts: Any
    given: int


def component(kind: Kind, facts: Any = None, given: int | None = None) -> Callable[[T], T]:
    """Mark a function or a class as a component that a configuration may name."""

    def mark(function: T) -> T:
        setattr(function, _MARK, Mark(kind, facts, _GIVEN[kind][0] if given is None else given))
        return function

    return mark


def facts_of(function: Callable[..., Any]) -> Any:
    """What a component said of itself when it was marked; settings bound to it change nothing."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, _MARK).facts


def find(node: Mapping[str, Any], kind: Kind, key: str) -> partial[Any]:
    """The component that a node of the configuration names, with the node's other keys bound to it as settings.

    Nothing of it is called. Where the function's parameters have types, the settings are checked against them.

    Args:
        node: ``{"_target_": "package.module.function", setting: value, ...}``.
        kind: what the key may name.
        key: where the node stands, for messages.

    Raises:
        ConfigError: names the key, for a target that is not of this package or of one that the user trusts, that does
            not exist or is of another kind, and for settings that it does not take.
    """
    function = _named(node.get("_target_"), kind, f"{key}._target_")
    settings = {name: value for name, value in node.items() if name != "_target_"}
    refuse_calls(settings, key)
    return partial(function, **_checked(function, settings, key))


def refuse_calls(node: Any, key: str, components: Collection[str] = ()) -> None:
    """Raise ``ConfigError`` for a ``_target_`` anywhere inside a node, or another key that Hydra gives a meaning to.

    Components take plain values; none takes an object that the configuration would have to make first.

    Args:
        components: keys whose nodes do name a component, and are checked by ``find``.
    """
    if key in components:
        return
    if isinstance(node, Mapping):
        for name, value in node.items():
            inside = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                raise ConfigError(f"{inside}={value!r}: nothing may be called here; give a plain value.")
            if name in ("_partial_", "_args_", "_recursive_", "_convert_"):
                raise ConfigError(f"{inside}: has no meaning here; leave it out.")
            refuse_calls(value, inside, components)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            refuse_calls(value, f"{key}[{index}]", components)


def _named(target: Any, kind: Kind, key: str) -> Callable[..., Any]:
    # By its text first: to import a module is to run it.
    if not _is_trusted(target):
        package = str(target).split(".")[0]
        hint = f" If you trust {package}, say so on the command line: runtime.trust=[{package}]."
        raise ConfigError(
            f"{key}={target!r}: only functions of {' and '.join(sorted(_trusted | _installed()))} may be named here."
            + (hint if package.isidentifier() and "." in str(target) else "")
        )
    try:
        function = hydra.utils.get_object(target)
    except Exception as error:  # whatever the module raises when it is imported
        raise ConfigError(f"{key}={target!r}: there is no such function ({type(error).__name__}).") from error
    mark = getattr(function, _MARK, None)
    if not isinstance(mark, Mark) or mark.kind != kind or not _is_trusted(getattr(function, "__module__", None)):
        raise ConfigError(f"{key}={target!r}: is not {_WHAT[kind]}, which is what this key takes.")
    return function


def trust(packages: Iterable[str]) -> None:
    """Let configurations name components of these packages too, for the life of this process."""
    _trusted.update(packages)


@cache
def _installed() -> frozenset[str]:
    """Installed packages with an entry point of ours; whoever installed them trusts them."""
    return frozenset(point.module.split(".")[0] for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


def _is_trusted(name: Any) -> bool:
    return isinstance(name, str) and name.split(".")[0] in _trusted | _installed()


def _checked(function: Callable[..., Any], settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings, once they fit the function's parameters by name and, where those have one, by type."""
    mark: Mark = getattr(function, _MARK)
    signature = inspect.signature(function)
    given, by_name = mark.given, _GIVEN[mark.kind][1]
    own = [item for name, item in list(signature.parameters.items())[given:] if name not in by_name]
    if not any(item.kind is item.VAR_KEYWORD for item in own):
        for name in settings:
            if name not in [item.name for item in own]:
                known = ", ".join(item.name for item in own) or "none"
                raise ConfigError(f"{key}.{name}: {function.__qualname__} has no such setting; it has {known}.")
    for item in own:
        optional = item.default is not item.empty or item.kind is item.VAR_KEYWORD
        if not optional and item.name not in settings:
            raise ConfigError(f"{key}.{item.name}: {function.__qualname__} needs it; give {key}.{item.name}=VALUE.")
    return _typed(function, settings, key)


def _typed(function: Callable[..., Any], settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings as their parameters' types; ``"3"`` becomes 3 where the parameter is an int."""
    hints = _hints(function)
    checked = dict(settings)
    for name, value in settings.items():
        if not _is_plain(hints.get(name)) or _fits(value, hints[name]):
            continue
        try:
            node = OmegaConf.merge(_setting(hints[name]), {"value": value})
            checked[name] = cast(Any, OmegaConf.to_container(node))["value"]
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"{key}.{name}={value!r}: {reason}.") from error
    return checked


@cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Types of a function's parameters; none where they have names that only a type checker sees."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except NameError:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of its type as it is: most are, and to ask OmegaConf takes milliseconds."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return type(value) in kinds and not (isinstance(value, str) and "$" in value)


@cache
def _setting(hint: Any) -> DictConfig:
    """A node whose ``value`` has a type. Making it takes longer than all of the check."""
    return OmegaConf.structured(make_dataclass("Setting", [("value", hint, field())]))


def _is_plain(hint: Any) -> bool:
    """Whether OmegaConf can check a type: str, int, float, bool, lists and dicts of these, with or without null."""
    if get_origin(hint) in (Union, types.UnionType, list, dict):
        return all(_is_plain(part) for part in get_args(hint))
    return hint in (str, int, float, bool, type(None))


def plain(cfg: Any) -> dict[str, Any]:
    """A config node (dataclass, DictConfig or mapping) as a plain dict."""
    if dataclasses.is_dataclass(cfg):
        return dataclasses.asdict(cast(Any, cfg))
    return {str(key): value for key, value in cfg.items()}
