"""YAML that is read back as it was written: values only, with bounds.

Nothing is interpolated (`${...}` is text). Tags, which can ask for objects, and aliases, with which a small file can
stand for a huge one, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hrm_agent.files.reading import CheckpointError, read_text

DEPTH_LIMIT = 50
_FLOAT = "tag:yaml.org,2002:float"
_INT = "tag:yaml.org,2002:int"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml the slow one


class _Loader(_Parser):
    """YAML as OmegaConf understands it: `1e-3` is a number, a date is text, and no key is given twice.

    But 1:30 is text, not a number to the base of 60, which takes quadratic time to read.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) > len(set(keys)):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_TIMESTAMP, _FLOAT, _INT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
        |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path, links: bool = True) -> Any:
    """The values in a YAML file: dictionaries, lists, text, numbers, booleans and None.

    Args:
        links: see `open_regular`.

    Raises:
        CheckpointError: see `read_text`; or it is not valid YAML, has a tag or an alias, is nested more than
            `DEPTH_LIMIT` deep, or gives a key twice.
    """
    text = read_text(path, links=links)
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        reason = where + (problem if problem.isprintable() else repr(problem))
    except ValueError as error:  # an integer of thousands of digits
        reason = str(error)
    raise CheckpointError(f"{path}: not valid YAML ({reason})")


def _check_events(text: str) -> None:
    """Refuse what is not plain before anything is built from it.

    Raises:
        YAMLError: a tag, an alias, or deep nesting.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = f"an alias, *{event.anchor}; expected every value in its place"
        elif getattr(event, "tag", None) is not None:
            problem = f"a tag, {event.tag}; expected plain values"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"nested more than {DEPTH_LIMIT} deep" if depth > DEPTH_LIMIT else None
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
