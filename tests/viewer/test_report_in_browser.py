"""The report in a real browser: its plot, its table, its texts, by mouse and by keyboard."""

from __future__ import annotations

import re

import pytest
from viewer.browser import Look
from viewer.made_results import made_results

from outlay.viewer.report import write_report

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "FLOP": 1, "kFLOP": 1e3, "MFLOP": 1e6, "GFLOP": 1e9,
         "TFLOP": 1e12, "PFLOP": 1e15, "s": 1, "ms": 1e-3, "µs": 1e-6, "×": 1, "": 1}  # fmt: skip


def column(page, key):
    """The first figure in each row of a column of the table."""
    at = page.locator("#table thead button").evaluate_all(
        "(all, key) => all.findIndex((b) => b.dataset.key === key)", key
    )
    return page.locator(f"#table tbody tr > :nth-child({at + 1})").evaluate_all(
        "(all) => all.map((cell) => (cell.querySelector('.figure') ?? cell).textContent)"
    )


@pytest.mark.parametrize("key", ["entry:target_passes", "ratio:tokens_per_second", "quality", "entry:seconds"])
def test_a_column_sorts_by_mouse_and_by_keyboard(report, key):
    head = report.locator(f'#table [data-key="{key}"]')
    head.click()
    down = [value_of(text) for text in column(report, key)]
    assert down == sorted(down, reverse=True)
    assert report.locator("#table th[aria-sort]").get_attribute("aria-sort") == "descending"
    report.keyboard.press("Enter")  # the head keeps the focus
    up = [value_of(text) for text in column(report, key)]
    assert up == sorted(up)
    assert report.locator("#table th[aria-sort]").get_attribute("aria-sort") == "ascending"


def value_of(text):
    """The number that a figure such as "1,204", "8.79 GB", "850.0 ms" or "1.82×" stands for."""
    figure = re.fullmatch(r"(−?[\d.,]+(?:e[-+−]?\d+)?) ?(\D*)", text)
    assert figure, text
    number = figure[1].replace(",", "").replace("−", "-")
    return float(number) * UNITS[figure[2]]


def precision_of(text):
    """How far a figure may be from its value: half of its last digit."""
    figure = re.fullmatch(r"−?([\d,]+)(?:\.(\d+))? ?(\D*)", text)
    return 0.5 * 10 ** -len(figure[2] or "") * UNITS[figure[3]] * 1.001


def looked_up(results, path):
    value = results
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_every_figure_is_found_in_the_results(report, results):
    report.locator("#columns summary").click()
    report.evaluate("document.querySelectorAll('#columns input:not(:checked)').forEach((box) => box.click())")
    seen = []
    for place in range(3):
        report.locator("#right").select_option(str(place + 1))
        report.locator("#after").click()
        report.locator(".point").nth(place).focus()
        seen += report.locator("[data-from]").evaluate_all("(all) => all.map((f) => [f.dataset.from, f.textContent])")
    assert {path.split(".")[0] for path, _ in seen} == {"contenders", "runs", "manifest"}
    for path, text in seen:
        assert value_of(text) == pytest.approx(looked_up(results, path), abs=precision_of(text)), path


def test_no_figure_hides_among_the_words(report):
    """Digits stand only in figures that say where they are from, and in the names of methods."""
    words = report.evaluate(
        """() => [...document.querySelectorAll("#headline, #lead, #table tbody, .facts")].map((part) => {
          const copy = part.cloneNode(true);
          copy.querySelectorAll(".figure, th").forEach((each) => each.remove());
          return copy.textContent;
        }).join(" ")"""
    )
    for label in report.evaluate(
        "JSON.parse(document.getElementById('data').textContent).contenders.map((c) => c.label)"
    ):
        words = words.replace(label, "")
    assert "fastest" in words
    assert not re.search(r"\d", words), words


def test_the_plot_shows_every_contender_and_speaks_for_itself(report):
    for key in ("entry:flops", "entry:kv_bytes", "entry:tokens_per_second"):
        report.locator("#plot-x").select_option(key)
        assert report.locator(".point").count() == 10
        assert report.locator("#plot-log").is_checked() == (key == "entry:flops"), "values 60 times apart"
    first = report.locator(".point").first
    assert first.get_attribute("aria-label").startswith(
        "greedy: quality (number) 0.450 (0.400 to 0.500), tokens per second 1"
    )
    first.focus()
    assert "greedy" in report.locator(".tip").inner_text()
    spans = report.locator(".point .whisker").count()
    assert spans == 20


def test_differences_are_what_no_common_part_holds(report):
    report.locator("#right").select_option("4")
    report.locator("#prompt").select_option("1")
    sides = [
        report.locator(f"#{side}-text .tokens > *").evaluate_all(
            "(all) => all.map((token) => [token.textContent, token.classList.contains('differs')])"
        )
        for side in ("left", "right")
    ]
    same = [[text for text, differs in side if not differs] for side in sides]
    assert same[0] == same[1]
    assert len(same[0]) == longest_common([text for text, _ in sides[0]], [text for text, _ in sides[1]])
    assert any(differs for _, differs in sides[0])
    report.locator("#right").select_option("1")
    assert report.locator("#texts .differs.token").count() == 0


def longest_common(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def test_prompts_are_found_by_words_and_by_differences(report, results):
    report.locator("#find").fill("question 17:")
    assert report.locator("#prompt option").count() == 1
    assert results["prompts"][17]["text"][:40].strip() in report.locator("#question").inner_text()
    report.locator("#find").fill("")
    report.locator("#right").select_option("4")
    report.locator("#differing").check()
    assert report.locator("#prompt option").count() == sum(prompt % 3 != 0 for prompt in range(30))
    report.locator("#find").fill("no such words")
    assert "No prompt is left" in report.locator("#question").inner_text()


def test_tokens_show_what_proposed_them_and_lead_to_their_trace(report, results):
    report.locator("#right").select_option("1")
    report.locator("#prompt").select_option("2")
    text = next(text for text in results["texts"] if (text["contender"], text["prompt"]) == (1, 2))
    shown = report.locator("#right-text .tokens > *").evaluate_all(
        "(all) => all.map((token) => [token.textContent, token.classList.contains('tinted')])"
    )
    assert shown == [[piece, origin != ""] for piece, origin in zip(text["pieces"], text["origins"], strict=True)]
    assert report.locator("#right-text a").get_attribute("href") == "traces/01-0002-0.html"


def test_print_is_light_and_has_the_whole_table(report):
    report.click("#theme")
    report.emulate_media(media="print")
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert report.locator("#theme").is_hidden()
    assert report.locator("#table thead").is_visible()
    assert report.locator("#table thead button").first.is_visible()


def test_a_report_without_a_metric_shows_speed(browser, tmp_path):
    write_report(made_results(3, 4, metric=False), tmp_path / "report.html")
    with Look(browser, tmp_path / "report.html") as look:
        assert look.complaints == []
        assert look.page.locator("#plot-y").input_value() == "entry:tokens_per_second"
        assert look.page.locator(".point").count() == 3


def test_a_method_of_which_every_run_failed_has_its_row_and_its_reason(browser, tmp_path):
    results = made_results(3, 4)
    nothing = {"entries": {}, "ratios": {}, "quality": None, "identical": 0, "compared": 0}
    results["contenders"][2] |= nothing | {"errors": 8, "first_error": "prompt 1: the cache is full"}
    for name in ("runs", "texts"):
        results[name] = [row for row in results[name] if row["contender"] != 2]
    write_report(results, tmp_path / "report.html")
    with Look(browser, tmp_path / "report.html") as look:
        page = look.page
        assert page.locator("#warning").inner_text() == "Runs of rsd:branching=2x2 failed: prompt 1: the cache is full."
        assert page.locator("#table tbody tr").nth(2).locator("td").first.inner_text() == "–"
        page.locator('#table [data-key="quality"]').click()
        page.keyboard.press("Enter")
        assert "2x2" in page.locator("#table tbody tr").last.inner_text(), "what has no value comes last either way"
        page.locator("#right").select_option("2")
        assert "the run failed" in page.locator("#right-text").inner_text()
        assert page.locator(".point").count() == 2
        assert look.complaints == []
