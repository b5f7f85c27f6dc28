"""Puzzles of four by four cells: Latin squares, of which any is right, and Sudoku with one solution."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from functools import cache

from outlay.bench.parallel.samples import Sample, Task, one_shot

Grid = tuple[tuple[int, ...], ...]
SIDE, GIVENS = 4, 12
SYMBOLS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def tasks() -> list[Task]:
    """Returns both puzzles."""
    return [Task("puzzle/latin_square", 64, _latin_squares), Task("puzzle/sudoku", 64, _sudokus)]


def _latin_squares(count: int, items: tuple[int, int], seed: int) -> list[Sample]:
    draw = random.Random(f"parallel/latin_square/{seed}")
    example = draw.sample(SYMBOLS, SIDE)
    shown = _csv([[example[cell] for cell in row] for row in draw.choice(_squares())])
    samples = []
    for _ in range(count):
        symbols = draw.sample(SYMBOLS, SIDE)
        answer = _csv([[symbols[cell] for cell in row] for row in draw.choice(_squares())])
        prompt = one_shot(_latin_question(example), shown, _latin_question(symbols))
        samples.append(Sample(prompt, answer, _latin_score(symbols)))
    return samples


def _latin_question(symbols: Sequence[str]) -> str:
    return (
        f"Fill a square of {SIDE} rows and {SIDE} columns with the symbols {', '.join(symbols)}, so that each stands "
        "once in every row and once in every column. Give only the rows, a line each, with commas between the cells."
    )


def _latin_score(symbols: Sequence[str]) -> Callable[[str, bool], float]:
    def score(text: str, strict: bool) -> float:
        lines = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
        rows = [line for line in lines if set(line) == set(symbols)][:SIDE]
        if strict and text.strip() != _csv(rows):
            return 0.0
        lines_of = [*rows, *zip(*rows, strict=False)]
        return float(len(rows) == SIDE and all(sorted(line) == sorted(symbols) for line in lines_of))

    return score


def _sudokus(count: int, items: tuple[int, int], seed: int) -> list[Sample]:
    draw = random.Random(f"parallel/sudoku/{seed}")
    shown, solution = sudoku(draw)
    samples = []
    for _ in range(count):
        asked, answer = sudoku(draw)
        prompt = one_shot(_sudoku_question(shown), _digits(solution), _sudoku_question(asked))
        samples.append(Sample(prompt, _digits(answer), _sudoku_score(_digits(answer))))
    return samples


def _sudoku_question(grid: Grid) -> str:
    return (
        f"Solve this Sudoku of {SIDE} rows and {SIDE} columns, in which 0 is an empty cell: every row, every column "
        f"and every square of two by two holds each of the digits 1 to {SIDE} once. Give only the solved rows, a line "
        "each.\n"
        f"{_digits(grid)}"
    )


def _sudoku_score(answer: str) -> Callable[[str, bool], float]:
    def score(text: str, strict: bool) -> float:
        if strict:
            return float(text.strip() == answer)
        lines = ["".join(filter(str.isdigit, line)) for line in text.splitlines()]
        return float("\n".join(line for line in lines if line) == answer)

    return score


def sudoku(draw: random.Random) -> tuple[Grid, Grid]:
    """Draws a puzzle with `GIVENS` cells, 0 where a cell is empty, and its only solution."""
    while True:
        solution = draw.choice(solved())
        empty = set(draw.sample(range(SIDE * SIDE), SIDE * SIDE - GIVENS))
        cells = [0 if place in empty else cell for place, cell in enumerate(itertools.chain(*solution))]
        asked = tuple(tuple(cells[begin : begin + SIDE]) for begin in range(0, SIDE * SIDE, SIDE))
        if sum(_agrees(asked, grid) for grid in solved()) == 1:
            return asked, solution


@cache
def solved() -> list[Grid]:
    """Returns all Sudoku grids of four by four, of which there are 288."""
    return [tuple(tuple(cell + 1 for cell in row) for row in square) for square in _squares() if _has_boxes(square)]


@cache
def _squares() -> list[Grid]:
    """Returns all Latin squares of four by four, of which there are 576."""
    rows = list(itertools.permutations(range(SIDE)))
    return [
        grid
        for grid in itertools.product(rows, repeat=SIDE)
        if all(len(set(column)) == SIDE for column in zip(*grid, strict=True))
    ]


def _has_boxes(square: Grid) -> bool:
    corners = itertools.product((0, 2), repeat=2)
    return all(len({square[row + i][column + j] for i in (0, 1) for j in (0, 1)}) == SIDE for row, column in corners)


def _agrees(asked: Grid, grid: Grid) -> bool:
    cells = zip(itertools.chain(*asked), itertools.chain(*grid), strict=True)
    return all(given in (0, cell) for given, cell in cells)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(",".join(row) for row in rows)


def _digits(grid: Grid) -> str:
    return "\n".join("".join(map(str, row)) for row in grid)
