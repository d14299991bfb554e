# mypy: disable-error-code="no-untyped-def"
# Kernels carry no annotations: numba infers their types; docstrings give shapes and dtypes.
"""Sudoku: a solver that counts its guesses, and a generator of puzzles with one solution.

The solver keeps a bitmask of candidates for each cell, fills in naked singles (one candidate left) and hidden singles
(one place left for a digit in a row, column or box), and where neither is left branches on the first of the cells with
the fewest candidates: the lowest digit, then all the others.

Difficulty is the number of such branchings in the whole search, which finds the solution and proves that there is no
other. The Sudoku-Extreme data set (HRM, arXiv 2506.21734) is rated by the backtracks of another solver, tdoku, whose
branching differs: the numbers are of the same kind, not of the same scale.
"""

import numpy as np
from numpy.typing import NDArray

from hrm_envs.jit import inner, kernel
from hrm_envs.rng import below, draw, level_seed, mix

CELLS = 81
_ALL = (1 << 9) - 1
# Streams of draws, beside those of hrm_envs.rng.
_STREAM_GRID, _STREAM_ORDER, _STREAM_CLIMB = 66, 67, 68
# Of solution grids, one in so many is kept for each of validation and test.
_SHARES = 8
# Proposals in a row that did not make a puzzle harder, after which the generator begins anew, and how often it may.
_PATIENCE = 60
_CLIMBS = 100
GENERATOR = 1
"""Version of what `make_puzzles` makes of a seed; to be raised when that changes."""


def _units() -> NDArray[np.int64]:
    """Cells of rows, columns and boxes: int64 [27, 9]."""
    grid = np.arange(CELLS).reshape(9, 9)
    boxes = grid.reshape(3, 3, 3, 3).transpose(0, 2, 1, 3).reshape(9, 9)
    return np.concatenate([grid, grid.T, boxes])


def _peers() -> NDArray[np.int64]:
    """The 20 cells that share a unit with each cell: int64 [81, 20]."""
    units = _units()
    return np.stack([np.setdiff1d(units[(units == cell).any(1)], [cell]) for cell in range(CELLS)])


UNITS, PEERS = _units(), _peers()
_BIT_COUNT = np.array([bin(mask).count("1") for mask in range(512)], np.int64)
_LOWEST = np.array([0, *((mask & -mask).bit_length() for mask in range(1, 512))], np.int64)


@inner
def _settle(masks, cell, queue):
    """Give a cell the only candidate it has left and follow all naked singles; False on a contradiction.

    masks: int64 [81]. ``queue``: scratch int64 [81].
    """
    queue[0] = cell
    head, tail = 0, 1
    while head < tail:
        bit = masks[queue[head]]
        at = queue[head]
        head += 1
        for k in range(20):
            peer = PEERS[at, k]
            before = masks[peer]
            if before & bit:
                after = before & ~bit
                if after == 0:
                    return False
                masks[peer] = after
                if after & (after - 1) == 0:
                    queue[tail] = peer
                    tail += 1
    return True


@inner
def _hidden_singles(masks, queue):
    """Fill in hidden singles until none is left; False on a contradiction."""
    found = True
    while found:
        found = False
        for unit in range(27):
            once, twice = 0, 0
            for k in range(9):
                mask = masks[UNITS[unit, k]]
                twice |= once & mask
                once |= mask
            if once != _ALL:
                return False
            alone = once & ~twice
            if alone == 0:
                continue
            for k in range(9):
                cell = UNITS[unit, k]
                bit = masks[cell] & alone
                if bit and bit != masks[cell]:
                    if bit & (bit - 1):
                        return False  # two digits have this cell as their only place
                    masks[cell] = bit
                    found = True
                    if not _settle(masks, cell, queue):
                        return False
    return True


@inner
def _fewest(masks):
    """The first of the unfilled cells with the fewest candidates, -1 where all are filled."""
    chosen, least = -1, 10
    for cell in range(CELLS):
        count = _BIT_COUNT[masks[cell]]
        if 1 < count < least:
            chosen, least = cell, count
            if count == 2:
                break
    return chosen


@inner
def _start(grid, masks, queue):
    """Candidates after a puzzle's clues, int64 [81]; False where they contradict each other."""
    for cell in range(CELLS):
        masks[cell] = _ALL
    for cell in range(CELLS):
        if grid[cell]:
            bit = 1 << (grid[cell] - 1)
            if masks[cell] & bit == 0:
                return False
            if masks[cell] != bit:
                masks[cell] = bit
                if not _settle(masks, cell, queue):
                    return False
    return True


@inner
def _search(stack, limit, most_guesses, seed, solution, queue):
    """Depth-first search below ``stack[0]``.

    Args:
        stack: int64 [82, 81], candidates; the first row is where to begin.
        limit: solutions after which to stop.
        most_guesses: branchings after which to stop; -1: no limit.
        seed: uint64, draws the digit to try first; 0: the lowest.
        solution: uint8 [2, 81], receives the first two solutions.

    Returns:
        (solutions found, branchings).
    """
    found, guesses, depth = 0, 0, 1
    while depth > 0:
        masks = stack[depth - 1]
        if not _hidden_singles(masks, queue):
            depth -= 1
            continue
        cell = _fewest(masks)
        if cell < 0:
            if found < 2:
                for k in range(CELLS):
                    solution[found, k] = _LOWEST[masks[k]]
            found += 1
            depth -= 1
            if found >= limit:
                break
            continue
        if guesses == most_guesses:
            guesses += 1
            break
        guesses += 1
        choices = masks[cell]
        bit = choices & -choices
        if seed:
            for _ in range(below(draw(seed, _STREAM_GRID, guesses, 0), _BIT_COUNT[choices])):
                choices &= choices - 1
                bit = choices & -choices
        # The row above is tried first; this one keeps the other digits.
        following = stack[depth]
        for k in range(CELLS):
            following[k] = masks[k]
        following[cell] = bit
        masks[cell] &= ~bit
        rest_holds = True
        if masks[cell] & (masks[cell] - 1) == 0:
            rest_holds = _settle(masks, cell, queue)
        first_holds = _settle(following, cell, queue)
        if not rest_holds:
            # Nothing is left below this row: the first digit takes its place.
            for k in range(CELLS):
                masks[k] = following[k]
            if not first_holds:
                depth -= 1
        elif first_holds:
            depth += 1
    return found, guesses


@inner
def _solve(grid, limit, most_guesses, stack, solution, queue):
    if not _start(grid, stack[0], queue):
        return 0, 0
    return _search(stack, limit, most_guesses, np.uint64(0), solution, queue)


@kernel
def _solve_many(grids, limit, solutions, found, guesses):
    stack, queue = np.empty((CELLS + 1, CELLS), np.int64), np.empty(CELLS, np.int64)
    two = np.zeros((2, CELLS), np.uint8)
    for n in range(len(grids)):
        found[n], guesses[n] = _solve(grids[n], limit, -1, stack, two, queue)
        if found[n]:
            solutions[n] = two[0]


def solve_many(
    grids: NDArray[np.uint8], limit: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Solve puzzles.

    Args:
        grids: uint8 `[N, 81]`, digits 1 to 9 or 0 where blank.
        limit: solutions to look for in each.

    Returns:
        A solution of each, uint8 `[N, 81]` (zeros where none exists); how many were found, int64 `[N]`, at most
        `limit`; and the branchings of the search until then, int64 `[N]`, which with `limit=2` and one solution are
        the puzzle's difficulty.

    Raises:
        ValueError: another shape, or a number above 9.
    """
    grids = np.ascontiguousarray(grids, np.uint8)
    if grids.ndim != 2 or grids.shape[1] != CELLS or (grids > 9).any():
        raise ValueError(f"grids of shape {grids.shape}: expected [N, 81] with digits 1 to 9, or 0 where blank")
    solutions, found, guesses = np.zeros_like(grids), np.zeros(len(grids), np.int64), np.zeros(len(grids), np.int64)
    _solve_many(grids, limit, solutions, found, guesses)
    return solutions, found, guesses


@inner
def _shuffle(seed, counter, order):
    """Fisher-Yates, in place."""
    for k in range(len(order) - 1, 0, -1):
        pick = below(draw(seed, _STREAM_ORDER, counter, k), k + 1)
        order[k], order[pick] = order[pick], order[k]


@inner
def _line_hash(full, step, stride):
    """Sum over pairs of lines, of a hash of how one permutes into the other; symmetric in lines and in digits."""
    total = np.uint64(0)
    for i in range(9):
        for j in range(i):
            seen, key = 0, np.uint64(i // 3 == j // 3)
            for k in range(9):
                digit, length = full[i * step + k * stride], np.uint64(0)
                while seen & (1 << digit) == 0:
                    seen |= 1 << digit
                    length += np.uint64(1)
                    for at in range(9):
                        if full[i * step + at * stride] == digit:
                            digit = full[j * step + at * stride]
                            break
                if length:
                    key += mix(length)
            total += mix(key)
    return total


@inner
def _grid_split(full):
    """Split of a solution grid, the same for all its images under the symmetries of Sudoku: 0, 1 or 2.

    The invariant is how each two rows, and each two columns, permute into each other: the lengths of the cycles, and
    whether the two lie in one band (one stack).
    """
    share = mix(mix(_line_hash(full, 9, 1)) + mix(_line_hash(full, 1, 9))) % np.uint64(_SHARES)
    if share == 0:
        return 2
    return 1 if share == 1 else 0


@kernel
def grid_splits(grids):
    """Splits of solution grids uint8 [N, 81]: int64 [N], 0 train, 1 validation, 2 test."""
    splits = np.empty(len(grids), np.int64)
    for n in range(len(grids)):
        splits[n] = _grid_split(grids[n])
    return splits


@inner
def _can_do_without(puzzle, cell, most_guesses, stack, two, queue):
    """Whether a puzzle with one solution keeps it, within ``most_guesses``, without the clue of a cell."""
    digit = puzzle[cell]
    puzzle[cell] = 0
    if most_guesses >= 0:
        found, guesses = _solve(puzzle, 2, most_guesses, stack, two, queue)
        can = found == 1 and guesses <= most_guesses
    else:
        # Quicker than to look for two solutions: is there one with another digit here?
        _start(puzzle, stack[0], queue)
        stack[0, cell] &= ~(1 << (digit - 1))
        can = True
        if stack[0, cell]:
            holds = True
            if stack[0, cell] & (stack[0, cell] - 1) == 0:
                holds = _settle(stack[0], cell, queue)
            if holds:
                can = _search(stack, 1, -1, np.uint64(0), two, queue)[0] == 0
    puzzle[cell] = digit
    return can


@inner
def _thin_out(seed, counter, puzzle, most_guesses, min_clues, order, stack, two, queue):
    """Take away clues in random order, as far as the puzzle allows; in place."""
    _shuffle(seed, counter, order)
    clues = 0
    for cell in range(CELLS):
        clues += puzzle[cell] != 0
    for cell in order:
        if clues > min_clues and puzzle[cell] and _can_do_without(puzzle, cell, most_guesses, stack, two, queue):
            puzzle[cell] = 0
            clues -= 1


@inner
def _propose(seed, counter, full, puzzle, min_clues, stack, two, queue):
    """Take one to three clues out of a puzzle, then give as many others as make its solution the only one again.

    It may have fewer clues than ``min_clues`` then, where it is given further ones.
    """
    for k in range(1 + below(draw(seed, _STREAM_CLIMB, counter, 0), 3)):
        puzzle[below(draw(seed, _STREAM_CLIMB, counter, 1 + k), CELLS)] = 0
    for k in range(CELLS):
        if _solve(puzzle, 2, -1, stack, two, queue)[0] == 1:
            break
        # A clue where another solution differs rules that one out.
        differing = 0
        chosen = -1
        for cell in range(CELLS):
            if two[0, cell] != two[1, cell]:
                differing += 1
                if below(draw(seed, _STREAM_CLIMB, counter, 100 * (k + 1) + cell), differing) == 0:
                    chosen = cell
        puzzle[chosen] = full[chosen]
    clues = 0
    for cell in range(CELLS):
        clues += puzzle[cell] != 0
    extra = 0
    while clues < min_clues:
        cell = below(draw(seed, _STREAM_CLIMB, counter, 10_000 + extra), CELLS)
        extra += 1
        if puzzle[cell] == 0:
            puzzle[cell] = full[cell]
            clues += 1


@kernel
def make_puzzles(seeds, split, min_guesses, max_guesses, min_clues, puzzles, solutions, guesses):
    """Puzzles with one solution, each a function of its seed.

    A random solution grid of the split loses clues in random order, as long as one solution is left, in at most
    ``max_guesses``. Where that takes fewer than ``min_guesses``, clues are exchanged and those that are not needed
    taken away again, as long as the puzzle gets no easier; after 60 exchanges in a row that made it no harder, it
    begins anew with another grid.

    Args:
        seeds: int64 [N].
        split: 0 train, 1 validation, 2 test.
        min_guesses, max_guesses: range of the difficulty; max_guesses -1: no limit.
        min_clues: clues to leave at least.
        puzzles, solutions: uint8 [N, 81], overwritten. ``guesses``: int64 [N], overwritten.

    Returns:
        Puzzles made: N, or fewer where 100 grids did not do.
    """
    stack, queue = np.empty((CELLS + 1, CELLS), np.int64), np.empty(CELLS, np.int64)
    two, order = np.zeros((2, CELLS), np.uint8), np.arange(CELLS)
    trial = np.empty(CELLS, np.uint8)
    for n in range(len(seeds)):
        made, climbs, attempt = False, 0, 0
        full, puzzle = solutions[n], puzzles[n]
        while not made and climbs < _CLIMBS:
            seed = np.uint64(level_seed(seeds[n], attempt, split))
            attempt += 1
            stack[0] = _ALL
            _search(stack, 1, -1, seed, two, queue)
            full[:] = two[0]
            if _grid_split(full) != split:
                continue
            climbs += 1
            order[:] = np.arange(CELLS)
            puzzle[:] = full
            _thin_out(seed, 0, puzzle, max_guesses, min_clues, order, stack, two, queue)
            hardest = _solve(puzzle, 2, -1, stack, two, queue)[1]
            counter, stale = 1, 0
            while hardest < min_guesses and stale < _PATIENCE:
                trial[:] = puzzle
                _propose(seed, counter, full, trial, min_clues, stack, two, queue)
                _thin_out(seed, counter, trial, -1, min_clues, order, stack, two, queue)
                harder = _solve(trial, 2, max_guesses, stack, two, queue)[1]
                counter += 1
                stale += 1
                if harder >= hardest and (max_guesses < 0 or harder <= max_guesses):
                    if harder > hardest:
                        stale = 0
                    hardest = harder
                    puzzle[:] = trial
            guesses[n] = hardest
            made = hardest >= min_guesses
        if not made:
            return n
    return len(seeds)
