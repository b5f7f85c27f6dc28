"""Every table of the documentation comes from a result in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlay.bench.docs import renewed, strays
from outlay.cli import main
from outlay.errors import FailureError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_what_the_results_give(page):
    text = page.read_text()
    assert renewed(text, RESULTS) == text, "run `outlay bench docs`"
    assert list(strays(text)) == [], "figures come from results: see outlay.bench.docs"


def test_there_are_tables_to_check():
    assert sum(page.read_text().count("<!-- table ") for page in PAGES) >= 4


def test_a_changed_figure_is_found(tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results").symlink_to(RESULTS)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "speed.md"
    text = (ROOT / "docs" / "speed.md").read_text()
    page.write_text(text.replace("ms x16", "ms x17"))
    assert main(["bench", "docs", "--folder", str(tmp_path), "--check"]) == 1
    assert "a table is not what its result gives" in capsys.readouterr().out
    assert main(["bench", "docs", "--folder", str(tmp_path)]) == 0
    assert page.read_text() == text


def test_figures_outside_of_made_tables_are_found():
    assert list(strays("| a | b |\n| --- | --- |\n| ours | 3.2x |\n")) == [3]
    assert list(strays("text\n\n$ outlay bench speed\n")) == [3]
    assert list(strays("| option | default |\n| --- | --- |\n| `width` | `4`, as the paper |\n")) == []


def test_a_table_without_a_result_is_refused(tmp_path):
    with pytest.raises(FailureError, match="no result"):
        renewed("<!-- table speed report -->\n<!-- end of table -->", tmp_path)
    with pytest.raises(FailureError, match="no table 'other'; it has report"):
        renewed("<!-- table speed other -->\n<!-- end of table -->", RESULTS)
