"""Drafts by name: what each name gives, what is said where there is none, and files that only their model takes."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cli.conftest import tiny  # noqa: F401 - a fixture
from papers.distributions import random_chain
from safetensors.torch import save_file

from outlay import LM
from outlay.decode.draft.aded import TableProposer
from outlay.decode.draft.ppd.prompt_tokens import KIND, PromptDrafter, load_prompt_tokens
from outlay.drafts import default_draft, resolve
from outlay.engine.engine import Engine
from outlay.engine.submission import DraftSource
from outlay.errors import FailureError, UsageError
from outlay.models import fitted
from outlay.models.draft_head import DraftHeadDecoder
from outlay.models.load import Model, load_model
from outlay.models.tokenizer import Tokenizer
from outlay.speculation import tables
from outlay.speculation.lookup import LookupProposer
from outlay.speculation.model_drafter import ModelDrafter
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.speculation.rounds import DraftLimits
from outlay.speculation.tables import open_table
from outlay.testing import PROMPTS, markov_model, tiny_model
from outlay.train.corpus import Passage
from outlay.train.draft_head import DraftHeadRecipe, DraftHeadTrainer

NAMES = ["head", "lookup", "table", "ppd", "self:skip", "self:skip=0", "self:int4", "self:int4,skip=1"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache; a default table of a little of Python's library."""
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "library_sources", lambda characters: iter(["def one():\n    return 1\n"] * 3))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=4)


@pytest.fixture
def lm(model):
    return LM(model, Engine())


def save_head(path, model):
    """A head that was not trained."""
    tokens = torch.arange(100)
    passage = Passage(tokens, 10, torch.randn(100, 32, generator=torch.Generator().manual_seed(0)).half())
    DraftHeadTrainer(model, DraftHeadRecipe(vocabulary=100), [passage]).save(path)


def save_prompts(path, model, m=4):
    vectors = torch.randn(m, 1, 32, generator=torch.Generator().manual_seed(0))
    fitted.write(path, KIND, model, {"vectors": vectors}, accuracy=[[0.3, 0.1, 0.05]] * m)


@pytest.fixture
def trained(model):
    """A head and prompt tokens where they are found."""
    save_head(fitted.own_path("head", model), model)
    save_prompts(fitted.own_path("ppd", model), model)


def other_tokens(model, *, rename):
    """A tokenizer of as many tokens, two of which are exchanged; or of one more."""
    import json

    inner = json.loads(model.tokenizer.inner.to_str())
    vocabulary = inner["model"]["vocab"]
    if rename:
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    else:
        vocabulary["ab"] = 257
    return Tokenizer(type(model.tokenizer.inner).from_str(json.dumps(inner)), eos_token_ids=(256,))


@pytest.mark.parametrize(
    ("name", "seated"),
    [("lookup", False), ("table", False), ("ppd", False), ("head", True), ("self:skip", True)],
)
def test_a_run_gets_a_seat_at_drafts_that_are_models(trained, model, name, seated):
    assert isinstance(resolve(name, model).model, Model) == seated


@pytest.mark.parametrize(
    ("name", "drafter"),
    [
        ("lookup", LookupProposer), ("table", TableProposer), ("ppd", PromptDrafter),
        ("head", ModelDrafter), ("self:int4", ModelDrafter),
    ],
)  # fmt: skip
def test_a_run_gets_the_drafter_of_its_draft(trained, lm, name, drafter):
    seen, named = [], lm.draft(name)
    watched = DraftSource(lambda run: seen.append(named.drafter(run)) or seen[-1], named.model)
    lm.generate(PROMPTS[0], method="speculative", draft=watched, max_tokens=6, ignore_eos=True)
    assert [type(each) for each in seen] == [drafter]


def test_files_and_folders_are_drafts(model, tiny, tmp_path):  # noqa: F811
    save_head(tmp_path / "h.safetensors", model)
    save_prompts(tmp_path / "p.safetensors", model)
    head = resolve(str(tmp_path / "h.safetensors"), model).model
    assert isinstance(head.decoder, DraftHeadDecoder)
    assert head.vocabulary.tolist() == list(range(10, 100)), "the tokens that the model wrote"
    prompts = resolve(str(tmp_path / "p.safetensors"), model).drafter(SimpleNamespace(model=model))
    assert isinstance(prompts, PromptDrafter)
    assert len(prompts._vectors) == 4
    assert resolve(str(tiny), model).model.fingerprint == load_model(tiny).fingerprint
    NgramTable.build([[1, 2, 3]], tokenizer_fingerprint(model.tokenizer)).save(tmp_path / "t.safetensors")
    run = SimpleNamespace(known_text=[1, 2], tokens=[])
    proposer = resolve(str(tmp_path / "t.safetensors"), model).drafter(run)
    assert proposer.propose(DraftLimits(4, 1)).tokens == [3]


def test_the_model_itself_with_less_of_it(model):
    whole = tiny_model(layers=8)
    assert len(resolve("self:skip", whole).model.decoder.layers) == 4, "without the middle half"
    kept = resolve("self:skip=0+2-4", whole).model.decoder.layers
    assert [whole.decoder.layers.index(layer) for layer in kept] == [1, 5, 6, 7]
    narrow = resolve("self:int4,skip=7", whole).model
    assert len(narrow.decoder.layers) == 7
    assert {layer.qkv.format for layer in narrow.decoder.layers} == {"int4"}
    assert whole.decoder.layers[0].qkv.format == "float32", "the target stays as it is"
    assert narrow.decoder.embed is whole.decoder.embed
    names = {resolve(name, model).model.fingerprint for name in ("self:skip=0", "self:skip=1", "self:int4")}
    assert len(names | {model.fingerprint}) == 4


@pytest.mark.parametrize("method", ["speculative", "rsd"])
@pytest.mark.parametrize("name", NAMES)
def test_at_temperature_zero_every_draft_writes_what_greedy_writes(trained, lm, model, name, method):
    expected = LM(model, Engine()).generate_batch(PROMPTS, max_tokens=24, ignore_eos=True)
    found = lm.generate_batch(PROMPTS, method=method, draft=name, max_tokens=24, ignore_eos=True)
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    if name.startswith(("self", "head")):
        assert all(result.ledger.draft_passes > 0 for result in found)
    assert sum(result.ledger.drafted for result in found) > 0


def test_less_of_the_model_drafts_better_than_another_model(lm):
    """Tokens that were taken of all that were drafted."""
    shares = {}
    for name, draft in (("int4", "self:int4"), ("other", tiny_model(1))):
        results = lm.generate_batch(PROMPTS, method="speculative", draft=draft, max_tokens=24, ignore_eos=True)
        shares[name] = sum(r.ledger.accepted for r in results) / sum(r.ledger.drafted for r in results)
    assert shares["int4"] > 2 * shares["other"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("head", "there is no draft head for tiny-0; `outlay train draft --model tiny-0` trains one"),
        ("ppd", "there are no prompt tokens for tiny-0; `outlay train ppd --model tiny-0` trains one"),
        ("self", "say what to leave out of the model: self:skip=10-19, self:int4 or self:int4,skip=4[+]6-9"),
        ("self:int5", "is written as self:skip=10-19, .*, not self:int5"),
        ("self:int4=2", "not self:int4=2"),
        ("self:skip=4", "skip takes layers from 0 to 3"),
        ("self:skip=a", "skip takes layers from 0 to 3, .*, not 'a'"),
        ("self:skip=0-3", "self:skip=0-3 leaves no layer of tiny-0"),
        ("none.safetensors", "there is no file none.safetensors"),
        ("smollm", "no model is called 'smollm' .did you mean 'smollm2-135m'"),
    ],
)
def test_what_cannot_be_had_says_what_would_be_right(model, name, match):
    with pytest.raises(UsageError, match=match):
        resolve(name, model)


def test_a_table_that_is_not_there_says_how_to_make_one(model, tmp_path):
    with pytest.raises(UsageError, match=r"there is no table .*; `outlay train table --out .* FILES...` makes one"):
        open_table(str(tmp_path / "none.tri"), model)
    (tmp_path / "text").write_text("no table")
    with pytest.raises(UsageError, match="is not a table of n-grams"):
        open_table(str(tmp_path / "text"), model)


def test_a_method_without_its_draft_names_all_that_there_are(lm):
    with pytest.raises(
        UsageError, match=r"lookup, table, ppd, self:int4 or self:skip.*`outlay train draft --model tiny-0`"
    ):
        lm.generate("Hi", method="speculative")


def test_a_draft_of_another_vocabulary_is_refused(model, lm, tiny):  # noqa: F811
    small = markov_model(random_chain(5, 1))
    with pytest.raises(UsageError, match=r"markov can't draft for tiny-0: .* differ \(5 and 257 tokens\); .* `lookup`"):
        lm.generate("Hi", method="speculative", draft=small)
    renamed = replace(tiny_model(1), tokenizer=other_tokens(model, rename=True))
    with pytest.raises(UsageError, match="tiny-1 can't draft for tiny-0: their vocabularies differ"):
        lm.generate("Hi", method="speculative", draft=renamed)
    wider = replace(model, tokenizer=other_tokens(model, rename=False))
    with pytest.raises(UsageError, match="tiny can't draft for tiny-0"):
        resolve(str(tiny), wider)


def test_a_table_of_other_tokens_is_refused(model, tmp_path):
    NgramTable.build([[1, 2, 3]], tokenizer_fingerprint(model.tokenizer)).save(tmp_path / "t")
    assert len(open_table(str(tmp_path / "t"), model)) == 1
    other = replace(model, tokenizer=other_tokens(model, rename=True))
    with pytest.raises(UsageError, match="another tokenizer; make one for this model with `outlay train table"):
        open_table(str(tmp_path / "t"), other)
    (tmp_path / "t").rename(tmp_path / "t.safetensors")
    with pytest.raises(UsageError, match="another tokenizer"):
        resolve(str(tmp_path / "t.safetensors"), other)


def test_a_table_is_opened_anew_when_its_file_changes(model, tmp_path):
    path = tmp_path / "t"
    NgramTable.build([[1, 2, 3]], tokenizer_fingerprint(model.tokenizer)).save(path)
    first = open_table(str(path), model)
    assert open_table(str(path), model) is first
    NgramTable.build([[1, 2, 4]], tokenizer_fingerprint(model.tokenizer)).save(path)
    os.utime(path, ns=(1, 1))
    assert [token for token, _ in open_table(str(path), model).successors((1, 2))] == [4]


def test_the_default_table_is_counted_once_and_kept(cache, monkeypatch):
    model = tiny_model()
    first = open_table("default", model)
    place = model.tokenizer.encode("de")
    assert [token for token, _ in first.successors(place)] == model.tokenizer.encode("f")
    [path] = (cache / "tables").iterdir()
    assert tokenizer_fingerprint(model.tokenizer).startswith(path.stem.removeprefix("python-"))
    monkeypatch.setattr(tables, "library_sources", lambda characters: iter(()))
    again = open_table("default", tiny_model())
    assert again.successors(place) == first.successors(place)
    assert open_table("none", model) is None


def test_a_head_that_was_trained_is_the_default_draft(model, cache):
    assert default_draft(model) is None
    save_head(fitted.own_path("head", model), model)
    assert isinstance(default_draft(model).model.decoder, DraftHeadDecoder)
    assert default_draft(tiny_model(1)) is None, "it is this model's only"
    assert fitted.own_path("head", model).parent == cache / "drafts"


def test_files_say_whose_they_are_and_no_other_model_takes_them(model, tmp_path):
    save_head(tmp_path / "h.safetensors", model)
    save_prompts(tmp_path / "p.safetensors", model)
    for name, kind, command in (("h", "head", "outlay train draft"), ("p", KIND, "outlay train ppd")):
        path = tmp_path / f"{name}.safetensors"
        about = fitted.describe(path)
        assert (about["kind"], about["model"], about["fingerprint"]) == (kind, "tiny-0", model.fingerprint)
        fix = f"was trained for tiny-0, whose weights are not those of tiny-1; `{command} --model tiny-1` trains one"
        with pytest.raises(UsageError, match=fix):
            resolve(str(path), tiny_model(1))
    with pytest.raises(UsageError, match="holds a 'head', not a 'ppd'"):
        load_prompt_tokens(tmp_path / "h.safetensors", model)
    assert fitted.read(tmp_path / "p.safetensors", KIND, model)[0]["vectors"].shape == (4, 1, 32)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_files_that_are_none_of_ours_are_refused(model, tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is None:
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        UsageError, match="holds nothing that outlay trained" if content is None else "can't be read"
    ) as e:
        resolve(str(path), model)
    assert "\n" not in str(e.value)


def test_damaged_prompt_tokens_say_how_to_make_others(model, tmp_path):
    path = tmp_path / "p.safetensors"
    fitted.write(path, KIND, model, {"vectors": torch.zeros(2, 1, 32)}, accuracy=[[0.1]])
    with pytest.raises(UsageError, match="is damaged; `outlay train ppd --model tiny-0` makes another"):
        resolve(str(path), model)


@pytest.mark.parametrize("method", ["speculative", "rsd", "rsd:variant=s", "spectr", "specinfer"])
def test_trees_are_no_deeper_than_the_guesses_that_there_are(lm, model, method):
    save_prompts(fitted.own_path("ppd", model), model, m=2)
    plain = lm.generate(PROMPTS[1], max_tokens=20, ignore_eos=True)
    found = lm.generate(PROMPTS[1], method=method, draft="ppd", max_tokens=20, ignore_eos=True)
    assert found.tokens == plain.tokens


def test_a_file_is_written_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path = tmp_path / "new" / "p.safetensors"
    save_prompts(path, model)
    before = path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["p.safetensors"]

    def broken(tensors, part, about):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fitted, "save_file", broken)
    with pytest.raises(FailureError, match=r"can't write .*: No space left on device"):
        save_prompts(path, model)
    assert path.read_bytes() == before


def test_a_file_that_safetensors_cannot_write_is_a_failure(model, tmp_path):
    (tmp_path / ".p.safetensors.part").mkdir()  # in the way
    with pytest.raises(FailureError, match="can't write"):
        save_prompts(tmp_path / "p.safetensors", model)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_middle_half_of_few_layers_leaves_some(layers):
    assert 0 < len(resolve("self:skip", tiny_model(layers=layers)).model.decoder.layers) < layers
