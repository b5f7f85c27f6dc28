"""Images in prompts: a tile is looked at once, its visual tokens are its own, and every method reads them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from outlay import Budget, Method, PromptTree, UsageError
from outlay.decode.greedy import Greedy
from outlay.engine.engine import Engine
from outlay.image_prompts import read_image
from outlay.lm import LM
from outlay.models.draft_head import untrained_draft_head
from outlay.models.images import ImagePrompt
from outlay.testing import PROMPTS, MethodProperties, tiny_lm, tiny_model, tiny_vision_model

TEXT = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps."
TOKENS = 4  # visual tokens of a tile of the tiny model
ROWS = 5  # of its tower


def lm_of(seed: int = 0, **options: Any) -> LM:
    return LM(tiny_vision_model(seed), Engine(**options))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


CASES = [
    ("greedy", None, {}),
    ("sample", None, {"temperature": 0.9, "top_p": 0.95}),
    ("beam", None, {}),
    ("best_of", None, {"temperature": 0.9}),
    ("lookup", None, {}),
    ("speculative", "model", {"temperature": 0.9}),
    ("speculative", "self:skip=0", {}),
    ("hydragen:n=3", None, {"temperature": 0.9}),
    ("auto", None, {}),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(part) for part in case if part))
def _each_case(request):
    method, draft, options = request.param
    TestEveryMethodOverAnImage.method = method
    TestEveryMethodOverAnImage.options = {"images": [picture()], **options}
    TestEveryMethodOverAnImage.draft = tiny_vision_model(1) if draft == "model" else draft


@pytest.mark.usefixtures("_each_case")
class TestEveryMethodOverAnImage(MethodProperties):
    options: ClassVar = {}

    def lm(self, **options):
        return lm_of(**options)


EXACT = [
    ("lookup", None), ("aded", None), ("auto", None), ("auto", "model"), ("speculative", "model"),
    ("speculative", "self:skip=0"), ("rsd", "model"), ("specinfer", "model"), ("spectr", "model"),
    ("traversal", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "draft"), EXACT)
def test_every_exact_method_writes_what_greedy_writes(method, draft):
    lm = lm_of()
    other = tiny_vision_model(1) if draft == "model" else draft
    options: dict[str, Any] = {"images": [picture(2)], "max_tokens": 40, "ignore_eos": True}
    wanted = lm.generate(TEXT, **options).tokens
    assert lm.generate(TEXT, method=method, draft=other, **options).tokens == wanted
    assert wanted != lm.generate(TEXT, max_tokens=40, ignore_eos=True).tokens


def test_prompts_that_differ_only_in_their_image_share_no_node_of_it():
    lm = lm_of()
    worker = lm.engine.worker(lm.model)
    first, other, again = (lm.encode([65, 66, *[257] * 4, 67, 68], images=[picture(seed)]) for seed in (0, 1, 0))
    assert first == other == again  # the ids are the same
    paths = [worker.plant(prompt, 0)[0].tip.path() for prompt in (first, other, again)]
    assert len({*paths[0]} & {*paths[1]}) == 2  # the text before the image
    assert len({*paths[0]} & {*paths[2]}) == 7  # all but the last token, whose logits are wanted
    planted, shared = worker.plant([65, 66, 67, 68, 69], 0)
    assert shared == 2
    assert not {*planted.tip.path()[2:]} & {*paths[0], *paths[1]}


def test_an_image_may_stand_twice_and_be_cut_off_anywhere():
    lm = lm_of()
    worker = lm.engine.worker(lm.model)
    ids = [257] * 8 + [65]
    paths = [
        worker.plant(lm.encode(ids, images=[picture(one), picture(two)]), 0)[0].tip.path()
        for one, two in ((0, 1), (0, 0), (1, 0))
    ]
    assert len({*paths[0]} & {*paths[1]}) == 4
    assert not ({*paths[0]} | {*paths[1]}) & {*paths[2]}


def test_two_images_and_one_text_at_once_each_get_their_own_answer():
    images = [picture(seed) for seed in range(4)]
    lm = lm_of()
    together = lm.generate_batch([TEXT] * 4, images=[[image] for image in images], max_tokens=20, logprobs=3)
    assert len({tuple(result.tokens) for result in together}) == 4
    for image, result in zip(images, together, strict=True):
        alone = lm_of().generate(TEXT, images=[image], max_tokens=20, logprobs=3)
        assert alone.tokens == result.tokens
        assert alone.logprobs == result.logprobs  # to the bit, whatever else was in the passes
        assert result.ledger.encoder_passes == 1
    worker = lm.engine.worker(lm.model)
    assert worker.ledger.encoder_tokens == 4 * ROWS


def test_an_image_asked_about_again_takes_no_pass_of_the_tower():
    lm, image = lm_of(), picture()
    first = lm.generate(TEXT, images=[image], max_tokens=5).ledger
    assert (first.encoder_passes, first.encoder_tokens) == (1, ROWS)
    for prompt in (TEXT, "Another question?", "Third"):  # the prefix is cached, then the embeddings alone are
        again = lm.generate(prompt, images=[Image.fromarray(image)], max_tokens=5)
        assert again.ledger.encoder_passes == again.ledger.encoder_tokens == 0
    assert lm.generate("before " + TEXT, images=[image, picture(1)], max_tokens=5).ledger.encoder_tokens == ROWS
    lm.engine.clear()
    assert lm.generate(TEXT, images=[image], max_tokens=5).ledger.encoder_passes == 1
    assert lm.generate(TEXT, images=[image], max_tokens=5).cached_tokens == len(TEXT) + TOKENS - 1


def test_without_a_prefix_cache_nothing_is_kept_but_those_at_once_share():
    lm, image = lm_of(prefix_cache=False), picture()
    for _ in range(2):
        assert lm.generate(TEXT, images=[image], max_tokens=3).ledger.encoder_passes == 1
    with lm.engine.together():
        handles = [lm.submit(f"{number} {TEXT}", images=[image], max_tokens=3) for number in range(3)]
    assert sum(handle.result().ledger.encoder_passes for handle in handles) == 1
    assert lm.engine.worker(lm.model).cache.in_use == 0


def test_embeddings_beyond_the_cache_are_let_go_and_made_again():
    lm = lm_of(cache_tokens=40)
    images = [picture(seed) for seed in range(12)]  # 48 visual tokens
    texts = [lm.generate("?", images=[image], max_tokens=4).tokens for image in images]
    assert lm.generate("Why?", images=[images[11]], max_tokens=4).ledger.encoder_passes == 0
    again = lm.generate("?", images=[images[0]], max_tokens=4)
    assert again.ledger.encoder_passes == 1
    assert again.tokens == texts[0]


def test_samples_of_one_prompt_look_once():
    lm = lm_of()
    for seed, (method, options) in enumerate(
        [("beam:width=4", {}), ("best_of:n=5", {"temperature": 0.8}), ("hydragen:n=4", {"temperature": 1.0})]
    ):
        ledger = lm.generate(TEXT, images=[picture(seed)], method=method, max_tokens=12, **options).ledger
        assert (ledger.encoder_passes, ledger.encoder_tokens) == (1, ROWS)


def test_a_draft_with_the_same_tower_does_not_look_again_and_one_of_text_drafts_from_the_text():
    lm = lm_of()
    own = lm.generate(TEXT, images=[picture()], method="speculative", draft="self:skip=0", max_tokens=10).ledger
    assert (own.encoder_passes, own.draft_passes > 0) == (1, True)
    other = tiny_vision_model(1)
    ledger = lm.generate(TEXT, images=[picture()], method="speculative", draft=other, max_tokens=10).ledger
    assert ledger.encoder_passes == 0
    assert lm.engine.worker(other, "draft").ledger.encoder_passes == 0
    assert lm.engine.worker(other, "draft").ledger.draft_tokens >= len(TEXT)


def test_questions_about_one_image_share_it_as_a_tree_and_as_a_held_prefix():
    lm, image = lm_of(), picture()
    questions = ["What is it?", "Where is it?", "Who?"]
    alone = [lm_of().generate(question, images=[image], max_tokens=8).tokens for question in questions]
    tree = lm.generate(PromptTree(None, questions), images=[image], method="hydragen:n=1", max_tokens=8)
    assert [text.tokens for text in tree.alternatives] == alone
    assert tree.ledger.encoder_passes == 1
    with lm.shared("Look: ", images=[picture(1)]) as prefix:
        assert prefix.tokens[:TOKENS] == [-1] * TOKENS
        answers = [prefix.generate(question, max_tokens=8) for question in questions]
    for question, answer in zip(questions, answers, strict=True):
        wanted = lm_of().generate(f"Look: \n\n{question}", images=[picture(1)], max_tokens=8)
        assert (answer.tokens, answer.ledger.encoder_passes) == (wanted.tokens, 0)


def test_a_prompt_is_cut_into_chunks_anywhere():
    prompt = [*[257] * 40, *range(200), *[257] * 40]
    images = [picture(seed) for seed in range(20)]
    lm = LM(tiny_vision_model(), Engine())
    wanted = lm.generate(prompt, images=images, max_tokens=6)
    assert wanted.ledger.encoder_tokens == 20 * ROWS
    beside = LM(lm.model, Engine())
    handles = [beside.submit(prompt, images=images, max_tokens=6)] + [
        beside.submit(text * 10, max_tokens=30, seed=seed) for seed, text in enumerate(PROMPTS)
    ]
    assert handles[0].result().tokens == wanted.tokens


def test_a_trace_names_the_nodes_of_an_image():
    events: list[dict[str, Any]] = []
    lm_of().submit("ab", images=[picture()], max_tokens=1, trace=events.append).result()
    nodes = next(event for event in events if event["event"] == "grow")["nodes"]
    assert [node.get("name", node.get("text")) for node in nodes[:6]] == [*["image"] * TOKENS, "a", "b"]


@pytest.mark.parametrize("entry", ["encoder_passes", "encoder_tokens"])
def test_a_budget_that_the_tower_would_break_ends_the_run_before(entry):
    result = lm_of().generate(TEXT, images=[picture()], budget=Budget(**{entry: 0.5}))
    assert (result.finish_reason, result.cap, result.tokens) == ("budget", entry, [])
    assert result.ledger.encoder_passes == 0


def test_a_method_may_have_images_looked_at_ahead_and_knows_where_they_are():
    lm, seen = lm_of(), []

    @dataclass(frozen=True)
    class Ahead(Method):
        about: ClassVar = Greedy.about

        def decode(self, run):
            tiles = yield run.target.encode()
            seen.append(([tile.computed for tile in tiles], list(run.visual_positions), run.text_prompt))
            logits, rows = yield run.target.forward_with_attention([run.tip])
            seen.append(tuple(rows[0].shape))
            run.commit(int(logits[0].argmax()))

    result = lm.generate("abc", images=[picture()], method=Ahead(), max_tokens=1)
    assert seen == [([True], [0, 1, 2, 3], lm.encode("abc")), (2, 7)]
    assert result.ledger.encoder_passes == 1
    assert result.tokens == lm.generate("abc", images=[picture()], max_tokens=1).tokens


def test_an_image_is_the_same_from_wherever_it_comes(tmp_path):
    pixels = picture()
    file, data = tmp_path / "a.png", io.BytesIO()
    Image.fromarray(pixels).save(file)
    Image.fromarray(pixels).save(data, format="png")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    tensor = torch.from_numpy(pixels)
    for source in (
        *(file, str(file), data.getvalue(), url, Image.fromarray(pixels)),
        *(pixels, tensor, tensor.permute(2, 0, 1), tensor / 255, tensor.permute(2, 0, 1).double() / 255),
    ):
        assert np.array_equal(read_image(source), pixels)
    grey = read_image(pixels[:, :, 0])
    assert np.array_equal(grey, read_image(pixels[:, :, :1]))
    assert np.array_equal(grey[:, :, 0], grey[:, :, 2])
    lm = lm_of()
    assert isinstance(lm.encode(TEXT, images=[file]), ImagePrompt)
    assert (
        lm.generate(TEXT, images=[url], max_tokens=3).tokens == lm.generate(TEXT, images=[pixels], max_tokens=3).tokens
    )


def test_bad_input_is_refused_in_one_line(tmp_path):
    lm, image = lm_of(), picture()
    (tmp_path / "no.png").write_text("no image")
    cases = [
        (lambda: tiny_lm().generate("a", images=[image]), "tiny-0 sees no images; load a model with a vision tower"),
        (lambda: lm.generate("a", images=[tmp_path / "no.png"]), "no.png can't be read as a picture"),
        (lambda: lm.generate("a", images=["nowhere.png"]), "there is no file nowhere.png"),
        (lambda: lm.generate("a", images=[b"abc"]), "the picture can't be read as a picture"),
        (lambda: lm.generate("a", images=[np.zeros((2, 4, 5))]), r"an array of shape \[2, 4, 5\] is no image"),
        (lambda: lm.generate("a", images=[np.full((3, 4, 3), 255.0)]), "floats must be from 0 to 1"),
        (lambda: lm.generate("a", images=[np.zeros((3, 4, 3), dtype=np.int64)]), "bytes .uint8. or floats"),
        (lambda: lm.generate("a", images=["https://example.com/a.png"]), "outlay fetches no images"),
        (lambda: lm.generate("a", images=["data:image/png,abc"]), "must be in base64"),
        (lambda: lm.generate("a", images=["data:image/png;base64,!"]), "is not base64"),
        (lambda: lm.generate([257, 65], images=[image]), "have 1 times the image token 257, .* 4 visual tokens"),
        (lambda: lm.generate([*[257] * 2, 65, *[257] * 2], images=[image]), "image token 257"),
        (lambda: lm.generate([257, 65]), "has a place for an image .<image>., but no image"),
        (lambda: lm.generate_batch(["a", "b"], images=[[image]]), "images has 1 lists for 2 prompts"),
        (lambda: lm.generate("a" * 510, images=[image]), "the prompt has 514 tokens, .* reads at most 512"),
        (lambda: lm.generate("a", images=[image], receipt=True), "a receipt holds no images"),
        (
            lambda: LM(tiny_model(), Engine()).generate(
                [{"role": "user", "content": [{"type": "image", "image": image}]}], max_tokens=1
            ),
            "no chat template|sees no images",
        ),
    ]
    for wrong, said in cases:
        with pytest.raises(UsageError, match=said):
            wrong()


MIXED = [
    ("greedy", {}),
    ("sample", {"temperature": 0.9}),
    ("beam:width=3", {}),
    ("best_of:n=3", {"temperature": 0.9}),
    ("hydragen:n=2", {"temperature": 0.9}),
    ("auto", {}),
    ("lookup", {}),
    ("aded:table=none", {}),
    ("speculative:depth=2", {"draft": "model"}),
    ("rsd:branching=3x2", {"draft": "model", "temperature": 0.9}),
    ("superposed", {"draft": "model"}),
    ("astar", {"scorer": "letters", "temperature": 0.9}),
    ("particles:n=3", {"scorer": "letters", "temperature": 0.9}),
    ("step_beam", {"scorer": "letters", "temperature": 0.9}),
    ("awrs", {"constraint": "regex:[0-9]{2}-[ab]{2,3}", "temperature": 0.9}),
    ("rejection", {"constraint": "regex:[^a]*", "temperature": 0.9}),
]


def letters(prompt, texts):
    """Rates texts by how many of their characters are letters."""
    return [sum(letter.isalpha() for letter in text) / max(1, len(text)) for text in texts]


def test_requests_of_all_methods_with_images_and_without_are_what_they_are_alone_and_leave_nothing():
    other = tiny_vision_model(1)

    def options(place: int) -> dict[str, Any]:
        method, given = MIXED[place % len(MIXED)]
        made = {"draft": {"model": other}, "scorer": {"letters": letters}}
        beside = {name: made.get(name, {}).get(value, value) for name, value in given.items()}
        images = [picture(seed) for seed in range((place + place // len(MIXED)) % 4)]  # 0 to 3
        return {"method": method, "seed": place, "max_tokens": 12, "images": images, **beside}

    lm = LM(tiny_vision_model(), Engine(prefix_cache=False))
    with lm.engine.together():
        handles = [lm.submit(PROMPTS[place % 5], **options(place)) for place in range(32)]
    results = [handle.result(240) for handle in handles]
    assert all(worker.cache.in_use == 0 for worker in lm.engine.models)
    assert lm.engine.worker(lm.model).ledger.encoder_tokens == 3 * ROWS
    for place, result in enumerate(results):
        alone = lm_of().generate(PROMPTS[place % 5], **options(place))
        assert (result.tokens, result.finish_reason) == (alone.tokens, alone.finish_reason), result.method


def test_a_draft_head_is_refused_by_name():
    lm = lm_of()
    head = untrained_draft_head(lm.model, 1, 128)
    with pytest.raises(UsageError, match="is a draft head, which drafts for text alone"):
        lm.generate(TEXT, images=[picture()], method="speculative", draft=head)
