"""What users type has a type with bounds, and another value is refused in one line that says which were expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
from msgspec import Meta

from hrm_agent.names.values import (
    Count,
    Positive,
    Share,
    check_fields,
    checked,
    expected,
    one_of,
    printable,
    shown,
    typed,
    types_of,
)

Loss = Annotated[str, one_of(("huber", "mse"), former=("l2",))]
Three = Annotated[str, one_of(("one", "two", "three"))]


@dataclass(frozen=True)
class Settings:
    count: Count
    rate: Positive = 1.0
    loss: Loss = "mse"
    most: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "algo", most="limits.most")


@pytest.mark.parametrize(("value", "kind"), [(1e3, Count), (1000.0, Count | None), (np.float32(1000), Count)])
def test_a_whole_float_is_an_integer_where_one_is_expected(value: Any, kind: Any) -> None:
    made = checked("n", value, kind)
    assert (made, type(made)) == (1000, int)
    assert type(checked("n", 1e3, Positive)) is float
    with pytest.raises(ValueError, match="expected true or false"):
        checked("n", 1.0, bool)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("abc", Count, "n='abc': expected an integer from 1 to 65,536"),
        (True, Count, "n=true: expected an integer from 1 to 65,536"),
        (1.5, Count, "n=1.5: expected an integer from 1 to 65,536"),
        (10**30, Count, f"n={10**30}: expected an integer from 1 to 65,536"),
        ([1], Count | None, "n=[1]: expected an integer from 1 to 65,536 or null"),
        (float("nan"), Share, "n=nan: expected a number from 0 to 1"),
        (float("inf"), Positive, "n=inf: expected a number above 0"),
        (10**400, Positive, "expected a number above 0"),
        (float("nan"), float, "n=nan: expected a number"),
        (-1, Annotated[float, Meta(ge=0)], "n=-1: expected a number, 0 or more"),
        (1, Annotated[float, Meta(gt=0, lt=1)], "n=1: expected a number above 0, up to below 1"),
        (3, Annotated[int, Meta(le=2)], "n=3: expected an integer, up to 2"),
        (1, bool, "n=1: expected true or false"),
        (5, str | None, "n=5: expected a text or null"),
        ("\x1b[31m", Count, r"n='\x1b[31m': expected an integer from 1 to 65,536"),
        ("hubr", Loss, "n='hubr': expected huber or mse; did you mean huber?"),
        ("thre", Three, "n='thre': expected one of one, two, three; did you mean three?"),
        ([], Loss, "n=[]: expected huber or mse"),
        ("x", dict[str, Any], "n='x': expected settings, {NAME: VALUE}"),
        ("x", list[str], "n='x': expected a list, [A,B]"),
        ([1], list[str], "n=[1]: expected a list, [A,B]"),
        ("x" * 1000, Count, f"n='{'x' * 59}...: expected an integer from 1 to 65,536"),
    ],
)
def test_another_value_is_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        checked("n", value, kind)
    assert message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("value", "kind", "made"),
    [
        (65_536, Count, 65_536),
        (np.int64(3), Count, 3),
        (np.float32(0.5), Share, 0.5),
        (2, Positive, 2.0),
        (None, Count | None, None),
        ("l2", Loss, "l2"),
        (("a", "b"), list[str], ["a", "b"]),
        (Ellipsis, Any, Ellipsis),
    ],
)
def test_a_value_of_the_type_is_taken(value: Any, kind: Any, made: Any) -> None:
    found = checked("n", value, kind)
    assert found == made
    assert type(found) is type(made)


def test_an_integer_with_more_digits_than_python_prints_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^n=\.\.\.: expected an integer from 1 to 65,536$"):
        checked("n", 10**5000, Count)


def test_a_dataclass_checks_its_fields() -> None:
    settings = Settings(2, rate=1)
    assert (settings.rate, type(settings.rate)) == (1.0, float)
    with pytest.raises(ValueError, match=r"^algo\.count=0: expected"):
        Settings(0)
    with pytest.raises(ValueError, match=r"^limits\.most=0: expected"):
        Settings(1, most=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1, "rat": 2}, "algo.rat=2: no such setting; did you mean rate? Known: count, rate, loss, most"),
        ({}, "algo.count: required, and not given"),
        (1, "algo=1: expected settings, algo.NAME=VALUE"),
        ({1: 2}, "algo={1: 2}: expected settings"),
    ],
)
def test_a_group_of_settings_is_complete_and_has_no_others(values: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        typed(Settings, values, "algo")
    assert str(error.value).startswith(message)
    assert typed(Settings, {"count": 1}, "algo") == Settings(1)


def test_what_cannot_be_resolved_is_not_checked() -> None:
    def foreign(size: NoSuchType, count: int = 3, both: int = 1) -> None: ...  # type: ignore[name-defined] # noqa: F821

    class Strange:
        def __init__(self, made: dict[tuple[int, ...] | dict[str, int] | Count, int], size: int = 1) -> None: ...

    assert set(types_of(foreign).values()) == {Any}
    assert types_of(Strange)["size"] is int


def test_values_and_texts_are_shown_on_one_line() -> None:
    assert [shown(value) for value in (None, True, "a\nb", 1.5)] == ["null", "true", r"'a\nb'", "1.5"]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert shown(deep) == "..." or len(shown(deep)) < 100
    assert printable("a\n b\x1b[31m\u202e\x9bc") == r"a b\x1b[31m\u202e\x9bc"
    assert expected(Any) == "Any"
