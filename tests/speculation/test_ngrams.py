"""The table of n-grams: what it counts, what it keeps, and what is learned on top of it."""

from __future__ import annotations

import numpy as np
import pytest

from outlay.decode.draft.aded import AdaptiveTable
from outlay.errors import UsageError
from outlay.speculation import ngrams
from outlay.speculation.ngrams import (
    NgramTable,
    TextNgrams,
    _hash_contexts,
    hash_context,
    tokenizer_fingerprint,
)
from outlay.testing import tiny_model

CORPUS = [[1, 2, 3, 1, 2, 4, 1, 2, 3, 5], [9, 1, 2, 3], [7, 8]]


def table(**options):
    return NgramTable.build(CORPUS, "tokens", **options)


def test_counts_are_those_of_hand():
    found = table(lengths=(1, 2, 3), successors=None)
    assert found.order == 4
    assert found.successors([1, 2]) == [(3, pytest.approx(0.75)), (4, pytest.approx(0.25))]
    assert found.successors([2]) == [(3, pytest.approx(0.75)), (4, pytest.approx(0.25))]
    assert found.successors([2, 3, 1]) == [(2, 1.0)]
    assert found.seen([1, 2]) == 4
    assert found.seen([2, 3]) == 2
    assert found.successors([3, 9]) == [], "no n-gram crosses two documents"
    assert found.successors([5, 5]) == []
    assert found.seen([5, 5]) == 0
    assert found.successors([1, 2, 3, 1]) == [], "longer than the table's contexts"


def test_probabilities_of_a_context_sum_to_one():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 6, size=80).tolist() for _ in range(5)]
    found = NgramTable.build(documents, "tokens", lengths=(1, 2), successors=None)
    for a in range(6):
        assert sum(chance for _, chance in found.successors([a])) == pytest.approx(1, abs=2e-3)


def test_the_most_frequent_successors_are_kept_the_lowest_first_among_equals():
    found = NgramTable.build([[1, 1, token] for token in (9, 5, 9, 7, 3)], "tokens", successors=3)
    assert [token for token, _ in found.successors([1, 1])] == [9, 3, 5]
    assert found.successors([1, 1])[0][1] == pytest.approx(0.4, abs=1e-3)


def test_two_documents_count_as_two_and_their_order_does_not_matter():
    one = NgramTable.build(CORPUS, "tokens", successors=None)
    other = NgramTable.build(CORPUS[::-1], "tokens", successors=None)
    for context in ([1, 2], [2, 3], [3, 1], [9, 1]):
        assert one.successors(context) == other.successors(context)


def test_hashes_of_arrays_are_those_of_contexts():
    tokens = np.array([5, 70000, 3, 9, 12], dtype=np.int64)
    for length in (1, 2, 4):
        expected = [hash_context(tokens[i : i + length].tolist()) for i in range(len(tokens) - length)]
        assert _hash_contexts(tokens, length).tolist() == expected


def test_a_table_is_written_and_read_again(tmp_path):
    tokenizer = tiny_model().tokenizer
    made = NgramTable.build(CORPUS, tokenizer_fingerprint(tokenizer), lengths=(1, 2))
    made.save(tmp_path / "t.safetensors")
    read = NgramTable.load(tmp_path / "t.safetensors", tokenizer)
    assert len(read) == len(made)
    assert read.successors([1, 2]) == made.successors([1, 2])
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_an_empty_corpus_gives_an_empty_table(tmp_path):
    made = NgramTable.build([], "tokens")
    made.save(tmp_path / "t.safetensors")
    assert NgramTable.load(tmp_path / "t.safetensors").successors([1, 2]) == []


def test_a_file_that_is_no_table_or_of_another_tokenizer_is_refused(tmp_path):
    tokenizer = tiny_model().tokenizer
    with pytest.raises(UsageError, match="there is no table"):
        NgramTable.load(tmp_path / "none", tokenizer)
    (tmp_path / "bad").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="is not a table of n-grams"):
        NgramTable.load(tmp_path / "bad", tokenizer)
    table().save(tmp_path / "other")
    with pytest.raises(UsageError, match="made with another tokenizer"):
        NgramTable.load(tmp_path / "other", tokenizer)


def test_learning_raises_each_triple_as_often_as_it_is_there_up_to_the_cap():
    learned = AdaptiveTable(table(), cap=3.0)
    before = learned.weight(2, 3, 1)
    learned.raise_by(0.04, [1, 2, 3, 1, 2, 3])
    assert learned.weight(1, 2, 3) == pytest.approx(0.75 + 0.08, abs=1e-3)
    assert learned.weight(2, 3, 1) == pytest.approx(before + 0.04, abs=1e-3)
    assert learned.weight(1, 2, 4) == pytest.approx(0.25, abs=1e-3), "what was not raised stays"
    learned.raise_by(0.4, [6, 6, 6])
    assert learned.successors(6, 6) == [(6, 0.4)], "missing pairs are entered"
    for _ in range(200):
        learned.raise_by(0.04, [1, 2, 3])
    assert learned.weight(1, 2, 3) == 3.0
    learned.reset()
    assert learned.weight(1, 2, 3) == pytest.approx(0.75)
    assert len(learned) == 0


def test_the_pairs_that_were_raised_last_are_kept():
    learned = AdaptiveTable(None, size=3)
    for token in range(5):
        learned.raise_by(0.5, [token, token, token])
    learned.raise_by(0.5, [2, 2, 2])
    learned.raise_by(0.5, [9, 9, 9])
    assert len(learned) == 3
    assert learned.weight(2, 2, 2) == 1.0
    assert learned.weight(0, 0, 0) == 0


def test_what_was_learned_fades_where_that_is_asked_for():
    learned = AdaptiveTable(None, decay=0.5)
    learned.raise_by(0.4, [1, 2, 3])
    learned.fade()
    assert learned.weight(1, 2, 3) == pytest.approx(0.2)


def test_a_text_finds_where_its_longest_end_stood_last():
    text = TextNgrams(3)
    text.extend([1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3])
    assert text.match() == (7, 2)
    assert list(text.after(7, 3)) == [5, 8, 2]
    text.extend([4])
    assert text.match() == (4, 3)
    assert text.match(shortest=4) is None
    text.extend([77])
    assert text.match() is None


def test_a_text_that_repeats_itself_is_copied_on_past_its_end():
    text = TextNgrams(3)
    text.extend([1, 2, 1, 2, 1, 2])
    place, length = text.match()
    assert length == 3
    assert list(text.after(place, 5)) == [1, 2, 1, 2, 1]


def test_an_end_does_not_find_itself():
    text = TextNgrams(3)
    text.extend([5])
    assert text.match() is None
    text.extend([5])
    assert text.match() == (1, 1)


def test_triples_that_are_raised_by_nothing_are_no_successors():
    learned = AdaptiveTable(None)
    learned.raise_by(0.0, [1, 2, 3, 4])
    assert learned.successors(1, 2) == []
    assert len(learned) == 0


def test_what_was_looked_up_before_is_what_is_looked_up_again(monkeypatch):
    """The longest end of a context that is known, and what follows it; the same from memory, which has an end."""
    monkeypatch.setattr(ngrams, "REMEMBERED", 3)
    found = table(lengths=(1, 2), successors=None)
    for _ in range(2):
        assert found.backoff([9, 1, 2]) == (2, *found.entry([1, 2])), "of the last two tokens"
        assert found.backoff([8, 7]) == (1, 1, [(8, 1.0)]), "of the last one, where two are not known"
        assert found.backoff([2]) == (1, *found.entry([2]))
        assert found.backoff([6, 6]) == found.backoff([]) == (0, 0, [])
        assert len(found._looked_up) <= 3


def test_a_tokenizers_fingerprint_is_worked_out_once():
    """Each request with a draft model asks for it, and for a large vocabulary it takes a tenth of a second."""
    tokenizer = tiny_model().tokenizer
    assert tokenizer_fingerprint(tokenizer) is tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(tiny_model(1).tokenizer) == tokenizer_fingerprint(tokenizer)
