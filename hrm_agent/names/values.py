"""Types of the values that users type, with bounds, and the line that refuses any other value.

A setting's annotation is all that is written of it: `algo.num_envs='abc': expected an integer from 1 to 65,536` and the
column of bounds in the documentation follow from `num_envs: Count`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from hrm_agent.names.nearest import did_you_mean


def one_of(names: Iterable[str], former: Iterable[str] = ()) -> Meta:
    """For `Annotated[str, one_of(LOSSES)]`: one of these names, or of the former ones, which messages do not list."""
    return Meta(extra={"names": tuple(names), "former": tuple(former)})


Seed = Annotated[int, Meta(ge=0, le=10**13)]
"""The seeds of all environments of a run, and those of held-out levels, then stay below 2^63."""
Steps = Annotated[int, Meta(ge=1, le=10**15)]
StepsOrNone = Annotated[int, Meta(ge=0, le=10**15)]
Many = Annotated[int, Meta(ge=1, le=10**9)]
ManyOrNone = Annotated[int, Meta(ge=0, le=10**9)]
Count = Annotated[int, Meta(ge=1, le=65_536)]
CountOrNone = Annotated[int, Meta(ge=0, le=65_536)]
Width = Annotated[int, Meta(ge=1, le=8192)]
"""Channels of a network."""
WidthOrNone = Annotated[int, Meta(ge=0, le=8192)]
Depth = Annotated[int, Meta(ge=1, le=1024)]
"""Layers, cycles, segments: what is computed one after the other."""
DepthOrNone = Annotated[int, Meta(ge=0, le=1024)]
Episodes = Annotated[int, Meta(ge=1, le=10**7)]
EpisodesOrNone = Annotated[int, Meta(ge=0, le=10**7)]
Split = Annotated[str, one_of(("train", "validation", "development", "test"))]
"""Of levels; those of puzzle tasks are fewer (`supervised.tasks.base.SPLITS`)."""
ThreadCount = Annotated[int, Meta(ge=1, le=1024)]
Workers = Annotated[int, Meta(ge=0, le=1024)]
"""Processes; 0 for none."""
NonNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]

SHOWN = 60
"""Characters of a refused value that are shown."""
_PLAIN = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def check_fields(config: Any, prefix: str = "", **others: str) -> None:
    """Check the fields of a frozen dataclass against their annotations, in `__post_init__`; integers become floats.

    Args:
        prefix: of their names in messages, `algo`.
        others: names in messages of fields that are set elsewhere, `hidden_size="core.hidden_size"`.

    Raises:
        ValueError: see `checked`.
    """
    for name, kind in types_of(type(config)).items():
        shown_as = others.get(name) or label(prefix, name)
        object.__setattr__(config, name, checked(shown_as, getattr(config, name), kind))


def typed(kind: Any, values: Any, prefix: str) -> Any:
    """Build a dataclass, which checks its fields itself.

    Args:
        kind: the dataclass.
        values: of its fields, by name; the others have their defaults.
        prefix: of their names in messages, `algo` or `settings`.

    Raises:
        ValueError: an unknown name, a missing one, or a value that the dataclass refuses.
    """
    given = Group(values, prefix)
    fields = dataclasses.fields(kind)
    refuse_unknown(given, [field.name for field in fields], prefix)
    for field in fields:
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            given[field.name]  # refused where it is missing
    return kind(**given)


class Group(dict[str, Any]):
    """A copy of the settings of a group; one that is asked for and missing is refused by its name.

    Args:
        name: of the group, for messages; empty for all settings.

    Raises:
        ValueError: `values` is no group, but a number for instance.
    """

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ValueError(f"{name}={shown(values)}: expected settings, {label(name, 'NAME')}=VALUE")
        super().__init__(values)
        self.name = name

    def __missing__(self, setting: str) -> Any:
        raise ValueError(f"{label(self.name, setting)}: required, and not given")

    def take(self, setting: str) -> Any:
        """A setting that is taken out."""
        value = self[setting]
        del self[setting]
        return value


def refuse_unknown(values: Mapping[str, Any], known: Collection[str], prefix: str) -> None:
    """Raises: ValueError for a name that is not `known`."""
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{label(prefix, name)}={shown(value)}: no such setting{did_you_mean(name, known, shown=99)}"
            )


def label(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`.

    Args:
        name: of the setting, for the message.
        kind: a type of the module `typing`; `Annotated` with `msgspec.Meta` for bounds, or `one_of`.

    Raises:
        ValueError: it is none, or a number that is not finite; the message says what was expected.
    """
    if isinstance(value, numbers.Number) and hasattr(value, "item"):
        value = value.item()  # of numpy
    names = _names_of(kind)
    try:
        made = _converted(value, kind)
    except (msgspec.ValidationError, RecursionError):
        pass
    else:
        is_name = not names or made is None or made in names or made in _names_of(kind, "former")
        if is_name and not (isinstance(made, float) and not math.isfinite(made)):
            return made
    meant = did_you_mean(value, names, shown=0) if isinstance(value, str) else ""
    raise ValueError(f"{name}={shown(value)}: expected {expected(kind)}{meant}")


def _converted(value: Any, kind: Any) -> Any:
    """Whole numbers that are typed as floats, 1e5, are integers where integers are expected."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        if not isinstance(value, float) or not value.is_integer():
            raise
        return msgspec.convert(int(value), kind)


def types_of(documented: Any) -> dict[str, Any]:
    """Annotations of a dataclass's fields, or of the arguments of a function or of a class; `Any` where there is none.

    Those of other packages may name what cannot be found; then they are all `Any`.
    """
    return _types_of(documented)


@cache
def _types_of(documented: Callable[..., Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(documented):
        names: list[str] = [field.name for field in dataclasses.fields(documented)]
    else:
        names = list(inspect.signature(documented).parameters)
    source = vars(documented).get("__init__", documented) if inspect.isclass(documented) else documented
    source = documented if dataclasses.is_dataclass(documented) else source
    try:
        hints = get_type_hints(source, include_extras=True)
    except Exception:
        hints = {}
    return {name: hints[name] if _is_known(hints.get(name)) else Any for name in names}


def _is_known(kind: Any) -> bool:
    """Whether values can be checked against this type."""
    try:
        msgspec.inspect.type_info(kind)
    except Exception:
        return False
    return kind is not None


def expected(kind: Any) -> str:
    """What a value of this type is, in words: `an integer from 1 to 65,536`."""
    inner = [each for each in _members(kind) if each is not types.NoneType]
    ending = " or null" if len(inner) < len(_members(kind)) else ""
    return " or ".join(map(_in_words, inner)) + ending


def takes_text(kind: Any) -> bool:
    """Whether a text is a value of this type."""
    return any((get_args(each)[0] if get_origin(each) is Annotated else each) is str for each in _members(kind))


def _in_words(kind: Any) -> str:
    plain, metas = (get_args(kind)[0], list(_metas(kind))) if get_origin(kind) is Annotated else (kind, [])
    names = _names_of(kind)
    if names:
        return names[0] if len(names) == 1 else " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
    origin = get_origin(plain) or plain
    if origin in (list, tuple):
        return "a list, [A,B]"
    if origin is dict:
        return "settings, {NAME: VALUE}"
    return "".join([_PLAIN.get(origin, getattr(origin, "__name__", str(origin))), *map(_bounds, metas)])


def _bounds(meta: Meta) -> str:
    least, above, most, below = meta.ge, meta.gt, meta.le, meta.lt
    first = f" from {least:,}" if least is not None else f" above {above:,}" if above is not None else ""
    last = f" to {most:,}" if most is not None else f" to below {below:,}" if below is not None else ""
    if first and not last and least is not None:
        return f", {least:,} or more"
    return first + (f", up{last}" if last and least is None else last)


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of another type the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _metas(kind: Any) -> Iterator[Meta]:
    for member in _members(kind):
        if get_origin(member) is Annotated:
            yield from (meta for meta in member.__metadata__ if isinstance(meta, Meta))


def _names_of(kind: Any, which: str = "names") -> list[str]:
    return [name for meta in _metas(kind) for name in (meta.extra or {}).get(which, ())]


def shown(value: Any) -> str:
    """A value as it is typed, on one line, without control characters, and shortened where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or nested too deeply
        return "..."
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def printable(text: str) -> str:
    """One line without control characters: white space becomes spaces, others are written as `repr` writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
