"""Sudoku: the solver agrees with a plain one, puzzles are as hard as asked, symmetries keep answers right."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_agent.supervised.tasks import build_task, sudoku_sets
from hrm_agent.supervised.tasks.base import Examples
from hrm_agent.supervised.tasks.sudoku import SudokuTask, augment_sudoku, examples_from, valid_sudokus
from hrm_agent.supervised.tasks.sudoku_rules import grid_splits, solve_many
from hrm_agent.supervised.tasks.sudoku_sets import Difficulty, PuzzleSet, make

# Puzzles that were published as hard for people or for programs; each has one solution.
FAMOUS = {
    "Golden Nugget": ".......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7.....",
    "Inkala 2012": "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
    "Al Escargot": "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3..",
    "17 clues": "4.....8.5.3..........7......2.....6.....8.4......1.......6.3.7.5..2.....1.4......",
    "against brute force": "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9",
}


def from_text(text: str) -> np.ndarray:
    return np.array([int(c) if c.isdigit() else 0 for c in text], np.uint8)


def allowed(grid: list[int], cell: int) -> list[int]:
    row, col = divmod(cell, 9)
    seen = set()
    for k in range(9):
        seen |= {grid[9 * row + k], grid[9 * k + col], grid[9 * (3 * (row // 3) + k // 3) + 3 * (col // 3) + k % 3]}
    return [digit for digit in range(1, 10) if digit not in seen]


def solutions_slowly(grid: list[int], limit: int) -> list[list[int]]:
    """Plain backtracking on the blank with the fewest digits left."""
    blanks = [(len(allowed(grid, cell)), cell) for cell in range(81) if grid[cell] == 0]
    if not blanks:
        return [list(grid)]
    _, cell = min(blanks)
    found: list[list[int]] = []
    for digit in allowed(grid, cell):
        grid[cell] = digit
        found += solutions_slowly(grid, limit - len(found))
        grid[cell] = 0
        if len(found) >= limit:
            break
    return found


@pytest.fixture(scope="module")
def puzzles() -> sudoku_sets.Puzzles:
    return make(Difficulty(0, -1, 0), "train", np.arange(60))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hrm_agent"


@pytest.mark.parametrize("name", FAMOUS)
def test_famous_puzzles_have_the_one_solution_that_rules_ask_for(name: str) -> None:
    clues = from_text(FAMOUS[name])
    solutions, found, guesses = solve_many(clues[None])
    assert found == [1]
    examples = examples_from(clues[None], solutions)
    assert valid_sudokus(examples.inputs, examples.labels).all()
    assert (guesses == 0) == (name == "against brute force")  # singles suffice, though a search row by row takes long


@pytest.mark.thorough
def test_solver_agrees_with_plain_backtracking(puzzles: sudoku_sets.Puzzles) -> None:
    """On puzzles with one solution, and on the same with a clue less or a clue changed: several solutions, or none."""
    generator = np.random.default_rng(0)
    grids = []
    for clues in puzzles.clues[:5]:
        filled = np.flatnonzero(clues)
        fewer, changed = clues.copy(), clues.copy()
        fewer[generator.choice(filled)] = 0
        changed[generator.choice(filled)] = generator.integers(1, 10)
        grids += [clues, fewer, changed]
    solutions, found, _ = solve_many(np.array(grids))
    for grid, solution, count in zip(grids, solutions, found, strict=True):
        clash = any(
            grid[cell] and grid[cell] not in allowed([0 if k == cell else int(d) for k, d in enumerate(grid)], cell)
            for cell in range(81)
        )
        expected = [] if clash else solutions_slowly([int(d) for d in grid], 2)
        assert count == len(expected)
        if count == 1:
            assert solution.tolist() == expected[0]
        elif count == 0:
            assert not solution.any()
    assert set(found.tolist()) == {0, 1, 2}


def test_puzzles_are_minimal(puzzles: sudoku_sets.Puzzles) -> None:
    for clues in puzzles.clues[:10]:
        fewer = np.repeat(clues[None], np.count_nonzero(clues), axis=0)
        fewer[np.arange(len(fewer)), np.flatnonzero(clues)] = 0
        assert (solve_many(fewer)[1] == 2).all()


@pytest.mark.parametrize(("least", "most", "clues"), [(0, 0, 0), (0, -1, 30), (2, 6, 0), (8, -1, 0), (1, 4, 28)])
def test_puzzles_are_as_hard_as_asked(least: int, most: int, clues: int) -> None:
    made = make(Difficulty(least, most, clues), "validation", np.arange(20))
    solutions, found, guesses = solve_many(made.clues)
    assert (found == 1).all()
    assert np.array_equal(solutions, made.solutions)
    assert np.array_equal(guesses, made.guesses)
    assert (guesses >= least).all()
    assert most < 0 or (guesses <= most).all()
    assert ((made.clues > 0).sum(1) >= clues).all()
    assert len({bytes(row) for row in made.clues}) == 20


def singles_suffice(grid: list[int]) -> bool:
    """Whether naked and hidden singles alone fill a puzzle in, by looking for one after the other."""
    boxes = [[9 * (3 * (b // 3) + k // 3) + 3 * (b % 3) + k % 3 for k in range(9)] for b in range(9)]
    units = (
        [[9 * r + c for c in range(9)] for r in range(9)] + [[9 * r + c for r in range(9)] for c in range(9)] + boxes
    )
    progress = True
    while progress:
        progress = False
        places = {cell: allowed(grid, cell) for cell in range(81) if grid[cell] == 0}
        for unit in units:
            for digit in range(1, 10):
                where = [cell for cell in unit if digit in places.get(cell, [])]
                if len(where) == 1 and grid[where[0]] == 0 and digit in allowed(grid, where[0]):
                    grid[where[0]] = digit
                    progress = True
        for cell in places:
            left = allowed(grid, cell)
            if grid[cell] == 0 and len(left) == 1:
                grid[cell] = left[0]
                progress = True
    return all(grid)


def test_no_guess_means_that_singles_suffice(puzzles: sudoku_sets.Puzzles) -> None:
    assert {0} < set(puzzles.guesses.tolist())
    for clues, guesses in zip(puzzles.clues, puzzles.guesses, strict=True):
        assert singles_suffice([int(d) for d in clues]) == (guesses == 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_symmetries_keep_answers_right_and_sets_apart(puzzles: sudoku_sets.Puzzles, seed: int) -> None:
    plain = examples_from(puzzles.clues, puzzles.solutions)
    images = augment_sudoku(plain, np.random.default_rng(seed))
    assert valid_sudokus(images.inputs, images.labels).all()
    assert ((images.inputs > 1).sum(1) == (plain.inputs > 1).sum(1)).all()
    assert np.array_equal(grid_splits((images.labels - 1).astype(np.uint8)), grid_splits(puzzles.solutions))
    solutions, found, _ = solve_many((images.inputs - 1).astype(np.uint8))
    assert (found == 1).all()
    assert np.array_equal(solutions + 1, images.labels)


def test_every_kind_of_symmetry_occurs() -> None:
    """On a grid whose tokens name their cells: which cell goes where, and which digits change."""
    solution = from_text("".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9)))
    drawn = augment_sudoku(examples_from(*[np.repeat(solution[None], 3000, axis=0)] * 2), np.random.default_rng(0))
    assert len({bytes(row) for row in drawn.labels}) > 2900
    # Where the nine digits of the first band's first row came from, by their place: the top left digit is any.
    assert len(set(drawn.labels[:, 0].tolist())) == 9
    clues = np.zeros((3000, 81), np.uint8)
    clues[:, [0, 1, 9]] = 1, 2, 3
    places = augment_sudoku(examples_from(clues, clues), np.random.default_rng(1)).inputs > 1
    assert places.any(0).all()
    corners = [tuple(np.argwhere(place.reshape(9, 9)).ravel().tolist()) for place in places]
    # Two clues share a row and two a column, in one box, in every image.
    assert all(len({r, s, t}) == 2 and len({c, d, e}) == 2 for r, c, s, d, t, e in corners)


def test_no_set_holds_a_solution_of_another() -> None:
    task = SudokuTask(train_puzzles=200)
    sets = [task.draw(np.random.default_rng(0), 300), task.examples("validation", 50), task.examples("test", 50)]
    for number, examples in enumerate(sets):
        assert (grid_splits((examples.labels - 1).astype(np.uint8)) == number).all()


def test_everything_is_a_function_of_the_arguments() -> None:
    one, two, other = SudokuTask(train_puzzles=70), SudokuTask(train_puzzles=70), SudokuTask(train_puzzles=70, seed=1)
    for a, b in zip(one.draw(np.random.default_rng(5), 40), two.draw(np.random.default_rng(5), 40), strict=True):
        assert np.array_equal(a, b)
    few = one.examples("test", 5).inputs
    assert np.array_equal(two.examples("test", 70).inputs[:5], few)
    assert np.array_equal(other.examples("test", 5).inputs, few)
    assert not np.array_equal(one.examples("validation", 5).inputs, few)
    plain = [SudokuTask(train_puzzles=70, augment=False, seed=seed) for seed in (0, 1)]
    drawn = [{bytes(row) for row in task.draw(np.random.default_rng(0), 2000).inputs} for task in plain]
    assert [len(rows) for rows in drawn] == [70, 70]
    assert not drawn[0] & drawn[1]
    fresh = SudokuTask(train_puzzles=0, augment=False).draw(np.random.default_rng(0), 100)
    assert len({bytes(row) for row in fresh.inputs}) == 100


def test_valid_is_a_sudoku_that_keeps_the_clues(puzzles: sudoku_sets.Puzzles) -> None:
    examples = examples_from(puzzles.clues[:3], puzzles.solutions[:3])
    task = SudokuTask()
    assert task.score(examples, examples.labels.astype(np.int16))["valid"].all()
    wrong = examples.labels.copy()
    wrong[0, 7] = wrong[0, 7] % 10 + 1
    wrong[1] = (wrong[1] - 1) % 9 + 2  # a Sudoku with other clues
    scores = task.score(examples, wrong)
    assert scores["valid"].tolist() == scores["exact"].tolist() == [False, False, True]
    several = Examples(np.ones((1, 81), np.int32), examples.labels[:1], np.zeros(1, np.int32))
    scores = task.score(several, examples.labels[1:2])
    assert scores["valid"].tolist() == [True]
    assert scores["exact"].tolist() == [False]


def test_sets_that_took_long_are_kept_and_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(count: int) -> sudoku_sets.Puzzles:
        return PuzzleSet(Difficulty(0, -1, 0), "train", 0, cache).first(count)

    monkeypatch.setattr(sudoku_sets, "KEEP_FROM_SECONDS", 1e9)
    fresh = first(20)
    assert not cache.exists()
    monkeypatch.setattr(sudoku_sets, "KEEP_FROM_SECONDS", 0.0)
    first(20)
    (path,) = cache.iterdir()

    def refuse(*arguments: object) -> None:
        raise AssertionError("made anew")

    with monkeypatch.context() as patched:
        patched.setattr(sudoku_sets, "make", refuse)
        assert all(np.array_equal(a, b) for a, b in zip(first(15), (array[:15] for array in fresh), strict=True))
        with pytest.raises(AssertionError):
            first(21)
    longer = first(30)
    assert all(np.array_equal(a[:20], b) for a, b in zip(longer, fresh, strict=True))
    whole = path.read_bytes()
    garbled = whole[:200] + bytes(50) + whole[250:]
    for data in (whole[:100], b"", _altered(fresh), garbled, _of_a_trillion_puzzles()):
        path.write_bytes(data)
        assert all(np.array_equal(a, b) for a, b in zip(first(20), fresh, strict=True))


def _of_a_trillion_puzzles() -> bytes:
    """An archive whose first header asks for more memory than there is."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 81)})
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("clues", "solutions", "guesses"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(81))
    return file.getvalue()


def _altered(puzzles: sudoku_sets.Puzzles) -> bytes:
    clues = puzzles.clues.copy()
    clues[3] = 0
    file = io.BytesIO()
    np.savez(file, clues=clues, solutions=puzzles.solutions, guesses=puzzles.guesses)
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_guesses": 3}, "max_guesses=0 is below min_guesses=3"),
        ({"max_guesses": -2}, "max_guesses=-2"),
        ({"min_clues": 82}, "min_clues=82"),
        ({"min_clues": 60, "min_guesses": 9, "max_guesses": 9}, "found no such puzzle"),
        ({"train_puzzles": -1}, "train_puzzles=-1"),
        ({"augment": "yes"}, "augment='yes'"),
    ],
)
def test_options_that_cannot_be_met_are_one_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_task("sudoku", options)
    assert "\n" not in str(caught.value)
