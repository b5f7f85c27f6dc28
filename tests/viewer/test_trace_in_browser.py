"""The page of a trace in a real browser: its tree, its passes, its text, by mouse and by keyboard."""

from __future__ import annotations

import re

from viewer.browser import Look, trace_page
from viewer.made_traces import as_lines, drafted_run

import outlay


def test_the_tree_is_walked_folded_and_stepped_through_by_keyboard(trace):
    tree, node = trace.locator("#tree"), trace.locator("#node")
    tree.focus()
    trace.keyboard.press("ArrowRight")
    assert "in the prompt" in node.inner_text()
    trace.keyboard.press("ArrowRight")
    assert "in the text" in node.inner_text()
    before = node.inner_text()
    trace.keyboard.press("ArrowDown")
    assert node.inner_text() != before
    assert re.search(r"score\s+−?-?\d", node.inner_text()), "marks are shown under their own names"
    trace.keyboard.press("End")
    assert "nodes below\t0" in node.inner_text()
    trace.keyboard.press("]")
    assert trace.locator("#pass-says").inner_text().startswith("Pass 1 of")
    assert "with 1 other run" in trace.locator("#pass-says").inner_text()
    trace.keyboard.press("]")
    assert trace.locator("#pass").input_value() == "1"


def drawn(page):
    """What the tree's canvas shows now, as data."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("document.getElementById('tree').toDataURL()")


def test_folding_zooming_and_colours_change_the_picture_and_come_back(trace):
    trace.locator("#tree").focus()
    first = drawn(trace)
    assert drawn(trace) == first
    trace.click("#fold")
    assert drawn(trace) != first
    trace.click("#unfold")
    assert drawn(trace) != first, "the prompt is unfolded, too"
    trace.locator("#tree").focus()
    trace.keyboard.press("Home")
    trace.keyboard.press("Enter")
    folded = drawn(trace)
    trace.keyboard.press("+")
    assert drawn(trace) != folded
    uncoloured = drawn(trace)
    for mark in ("score", "round"):
        trace.locator("#paint").select_option(mark)
        assert drawn(trace) != uncoloured
    trace.locator("#paint").select_option("")
    assert drawn(trace) == uncoloured


def test_a_memory_stands_over_the_tree_as_a_segment_of_its_own(browser, tmp_path):
    page = trace_page(tmp_path, as_lines(drafted_run(nodes=60, memory=415)))
    with Look(browser, page) as look:
        tree, node = look.page.locator("#tree"), look.page.locator("#node")
        whole = drawn(look.page)
        tree.click(position={"x": 40, "y": 30})
        assert "memory · 415 rows of sound" in node.inner_text()
        assert re.search(r"made in pass\s+1", node.inner_text())
        assert drawn(look.page) != whole, "it has a ring"
        look.page.keyboard.press("ArrowDown")
        assert "in the prompt" in node.inner_text()
        look.page.keyboard.press("ArrowUp")
        assert "memory" in node.inner_text()
        look.page.keyboard.press("[")
        for _ in range(look.page.locator("#pass").evaluate("(slider) => Number(slider.max)")):
            look.page.keyboard.press("[")
        assert "encoder: 415 rows of 415" in look.page.locator("#pass-says").inner_text()
        assert look.complaints == []


def test_the_text_of_a_trace_is_that_of_its_tokens(browser, tmp_path):
    events = drafted_run(nodes=60)
    page = trace_page(tmp_path, as_lines(events))
    texts = {row["token"]: row["text"] for event in events if event["event"] == "grow" for row in event["nodes"]}
    with Look(browser, page) as look:
        assert look.page.locator("#tokens").evaluate("(p) => p.textContent") == "".join(
            texts[token] for token in events[-1]["tokens"]
        )
        look.page.locator("#tokens .token").nth(1).click()
        assert "in the text" in look.page.locator("#node").inner_text()


def test_bytes_become_characters_and_special_tokens_their_names(browser, tmp_path):
    rows = [{"bytes": "f09f"}, {"bytes": "8f9e"}, {"text": " park"}, {"name": "<|im_end|>"}]
    grown = [{"node": n + 2, "parent": n + 1, "token": 5 + n, "position": n + 1, **row} for n, row in enumerate(rows)]
    events = [
        {"event": "start", "time": 0, "method": "made", "model": "tiny", "prompt": [1]},
        {"event": "grow", "time": 0, "nodes": [{"node": 1, "parent": None, "token": 1, "text": "Hi", "position": 0}]},
        {"event": "grow", "time": 1, "nodes": grown},
        {"event": "keep", "time": 1, "nodes": [2, 3, 4, 5]},
        {"event": "finish", "time": 2, "reason": "stop", "tokens": [5, 6, 7, 8]},
    ]
    page = trace_page(tmp_path, as_lines(events))
    with Look(browser, page) as look:
        assert look.page.locator("#tokens").inner_text() == "\N{NATIONAL PARK} park<|im_end|>"
        assert look.complaints == []


def test_each_origin_has_its_acceptance_rate(browser, tmp_path):
    events = drafted_run(nodes=60)
    grown = [row for event in events if event["event"] == "grow" for row in event["nodes"]]
    committed = {node for event in events if event["event"] == "keep" for node in event["nodes"]}
    drafted = [row["node"] for row in grown if row.get("origin") == "lookup"]
    accepted = len(committed & set(drafted))
    assert 0 < accepted < len(drafted)
    with Look(browser, trace_page(tmp_path, as_lines(events))) as look:
        table = look.page.locator("#origins")
        header = "proposed by\tproposed\taccepted\trejected\tacceptance rate"
        assert table.locator("thead").inner_text().strip() == header
        row = table.locator("tbody tr", has_text="lookup").inner_text().split("\t")
        assert row[1:3] == [str(len(drafted)), str(accepted)]
        assert row[4] == f"{100 * accepted / len(drafted):.1f} %"


def test_one_run_of_several_is_picked(browser, tmp_path):
    events = drafted_run(nodes=40) + drafted_run(run=1, nodes=80, seed=2, method="other")
    page = trace_page(tmp_path, as_lines(events))
    with Look(browser, page) as look:
        look.page.locator("#run").select_option("1")
        assert look.page.locator("h1").inner_text().startswith("other wrote")
        look.page.keyboard.press("]")
        assert "with run 1" in look.page.locator("#pass-says").inner_text(), "the pass is found in the other run, too"


def test_a_trace_that_is_cut_off_says_so_and_shows_what_is_there(browser, tmp_path):
    page = trace_page(tmp_path, as_lines(drafted_run(nodes=80))[:-200])
    with Look(browser, page) as look:
        assert "is broken off" in look.page.locator("#warning").inner_text()
        assert look.page.locator("#tokens .token").count() > 5
        assert look.complaints == []


def test_a_canvas_shows_its_rounds_with_the_confidence_of_each_proposal(browser, tmp_path):
    events = []
    result = outlay.load("exact-phrase").generate("^ab", method="ete:block=8", max_tokens=24, trace=events.append)
    with Look(browser, trace_page(tmp_path, as_lines(events))) as look:
        page = look.page
        assert page.locator("#tokens").inner_text() == result.text
        assert not page.locator("#tree-part").is_visible()
        canvas, says = page.locator("#canvas"), page.locator("#canvas-says")
        assert says.inner_text() == f"{result.ledger.rounds} rounds over 24 positions."
        first = next(event for event in events if event["event"] == "fill")["cells"][0]
        canvas.focus()
        page.keyboard.press("Home")
        assert says.inner_text().startswith(
            f"Round 1, position 3: “{first['text']}”, confidence {first['confidence']:.3f}"
        )
        page.keyboard.press("ArrowDown")
        assert says.inner_text().startswith("Round 2, position")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        size = (box["width"] - 64) / 24
        page.mouse.move(box["x"] + 64 + 2.5 * size, box["y"] + 0.5 * size)
        assert says.inner_text().startswith("Round 1, position 5:")
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        assert says.inner_text().endswith("positions.")
        page.locator("#tokens .token").nth(1).click()
        assert look.complaints == []
