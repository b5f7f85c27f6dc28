"""Distillation of an encoder-decoder: the network, the layouts, the loss and the training, by the specification."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

import outlay
from outlay.bench.arch.nets import write_decoder_only, write_mu
from outlay.errors import UsageError
from outlay.progress import silent
from outlay.prompt_logits import logits_from
from outlay.testing import END, tiny_lm, tiny_model
from outlay.train.distill import Distillation, DistillRecipe, EngineTeacher, Mu, MuConfig, Pair, read_pairs
from outlay.train.distill.layout import IGNORED, gold_loss, kl_loss, same_vocabulary, student_layout, teacher_layout
from outlay.train.distill.training import rate

SMALL = MuConfig(2, 1, 32, 16, 4, 2, 64, END + 1, 64, dropout=0.0)
RECIPE = DistillRecipe(
    n_encoder_layer=2, n_decoder_layer=1, n_embd=32, qkv_embd=16, n_head=4, n_kv_head=2, hidden_dim=64, dropout=0.0,
    n_enc=32, n_dec=16, lr=3e-3, batch=4, micro=4, epochs=2, measure_every=2,
)  # fmt: skip
SOURCES = [[1, 2, 3, 4, 5], [9, 8], [7, 7, 7]]
TARGETS = [[11, 12, END], [13, END], [14, 15, 16, END]]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = Mu(SMALL)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    return made.eval()


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


class TableTeacher:
    """Predicts the next token by the one before, alone."""

    def __init__(self, vocab=END + 1):
        self.table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(1)) * 2

    def logits(self, layout):
        return layout.predicting(self.table[layout.tokens])

    def write(self, sources, most):
        texts = []
        for source in sources:
            text = [source[-1]]
            while len(text) <= most and text[-1] != END:
                text.append(int(self.table[text[-1]].argmax()))
            texts.append(text[1:])
        return texts


def pairs(count):
    draw = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        length = int(torch.randint(3, 12, (), generator=draw))
        source = torch.randint(1, 100, (length,), generator=draw).tolist()
        made.append(Pair(source, [*source[:3], END]))
    return made


def training(recipe=RECIPE, teacher=None, count=20):
    return Distillation(recipe, pairs(count), tiny_model().tokenizer, teacher, END + 1)


# The network


def test_the_released_shape_has_the_released_number_of_parameters():
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Mu(MuConfig()).parameters())
    assert count == pytest.approx(332e6, rel=2e-3)


def test_the_parameters_have_the_released_names(net):
    names = {name for name, _ in net.named_parameters()}
    layer = {f"{part}.{kind}" for part in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert {f"transformer.e.1.mlp.{name}" for name in layer} <= names
    assert {
        "transformer.wte.weight", "transformer.ln_e.weight", "transformer.ln_f.weight", "transformer.e.0.ln2.weight",
        "transformer.e.0.attn.q_linear.bias", "transformer.h.0.ln3.weight",
        "transformer.h.0.causal_attn.k_linear.weight", "transformer.h.0.cross_attn.out_linear.weight",
    } <= names  # fmt: skip


def test_padding_changes_neither_the_memory_nor_the_logits(net):
    layout = student_layout(SOURCES, TARGETS, END, pad=77)
    together = net(layout.source, layout.source_mask, layout.tokens)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = student_layout([source], [target], END)
        memory = net.encode(alone.source, alone.source_mask)[0]
        padded = net.encode(layout.source, layout.source_mask)[row, : len(source)]
        assert (memory - padded).abs().max() <= 1e-5
        logits = net(alone.source, alone.source_mask, alone.tokens)[0]
        assert (logits - together[row, : len(target)]).abs().max() <= 1e-5


def test_the_loss_of_an_example_alone_is_that_in_a_padded_batch(net):
    layout = student_layout(SOURCES, TARGETS, END)
    together = net(layout.source, layout.source_mask, layout.tokens)
    sums = []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        alone = student_layout([source], [target], END)
        loss = gold_loss(net(alone.source, alone.source_mask, alone.tokens), alone.targets)
        sums.append(loss.item() * len(target))
    assert gold_loss(together, layout.targets).item() == pytest.approx(sum(sums) / sum(map(len, TARGETS)), abs=1e-5)


def test_cached_steps_give_the_logits_of_full_recomputation(net):
    layout = student_layout(SOURCES, TARGETS, END)
    memory = net.encode(layout.source, layout.source_mask)
    whole = net.decode(layout.tokens, memory, layout.source_mask)
    cross, own, found = net.cross(memory), None, []
    for place in range(layout.tokens.shape[1]):
        logits, own = net.step(layout.tokens[:, place : place + 1], cross, layout.source_mask, own)
        found.append(logits)
    assert (torch.cat(found, 1) - whole).abs().max() <= 1e-5


def test_the_encoder_runs_once_whatever_is_written(net, monkeypatch):
    passes = Counter()
    encode = net.encode
    monkeypatch.setattr(net, "encode", lambda *args: passes.update(["encode"]) or encode(*args))
    layout = student_layout(SOURCES, TARGETS, END)
    texts = net.generate(layout.source, layout.source_mask, END, END, 12)
    assert passes == {"encode": 1}
    full = []
    for source in SOURCES:
        row, tokens = student_layout([source], [[1]], END), [END]
        while len(tokens) <= 12 and (len(tokens) == 1 or tokens[-1] != END):
            tokens.append(int(net(row.source, row.source_mask, torch.tensor([tokens]))[0, -1].argmax()))
        full.append(tokens[1:])
    assert texts == full


@pytest.mark.parametrize("interleaved", [False, True])
def test_query_heads_share_keys_in_the_order_of_the_flag(interleaved):
    attention = Mu(replace(SMALL, is_interleaved=interleaved)).transformer.h[0].cross_attn
    keys = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    assert attention._shared(keys)[0, :, 0, 0].tolist() == ([0, 0, 1, 1] if interleaved else [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_head": 3}, "3 heads"),
        ({"n_kv_head": 3}, "4 query heads can't share 3 kv heads"),
        ({"n_encoder_layer": 0}, "n_encoder_layer must be 1 or more"),
    ],
)
def test_dimensions_that_heads_do_not_divide_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        replace(SMALL, **change)


# The layouts and the loss


def test_the_last_source_token_of_every_example_lies_at_one_place_for_the_teacher():
    layout = teacher_layout(SOURCES, TARGETS)
    assert layout.first == 4
    assert layout.tokens[:, 4].tolist() == [source[-1] for source in SOURCES]
    assert layout.tokens.shape == layout.mask.shape == (3, 5 + 4)
    assert layout.positions[1].tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3]
    assert layout.mask[1].tolist() == [False] * 3 + [True] * 4 + [False] * 2


def test_the_kl_is_zero_for_the_same_distributions_and_above_when_shifted_by_one():
    teacher = TableTeacher()
    layout, student = teacher_layout(SOURCES, TARGETS), student_layout(SOURCES, TARGETS, END)
    wanted = teacher.logits(layout)
    previous = torch.tensor([[source[-1], *target[:-1], *[0] * (4 - len(target))] for source, target in
                             zip(SOURCES, TARGETS, strict=True)])  # fmt: skip
    same = teacher.table[previous]
    assert kl_loss(wanted, same, student.targets).item() == pytest.approx(0, abs=1e-6)
    for shift in (-1, 1):
        begin = layout.first + shift
        shifted = teacher.table[layout.tokens][:, begin : begin + wanted.shape[1]]
        assert kl_loss(shifted, same, student.targets).item() > 0.5
    assert kl_loss(wanted, same + 3.0, student.targets).item() == pytest.approx(0, abs=1e-6)


def test_the_kl_is_never_below_zero():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        one, other = (torch.randn(2, 3, 9, generator=draw) * 4 for _ in range(2))
        assert kl_loss(one, other, torch.zeros(2, 3, dtype=torch.int64)).item() >= 0


def test_padding_counts_in_the_kl_only_where_that_is_asked_for():
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(1, 4, 9, generator=draw) for _ in range(2))
    targets = torch.tensor([[1, 2, IGNORED, IGNORED]])
    alone = kl_loss(teacher[:, :2], student[:, :2], targets[:, :2])
    assert torch.equal(kl_loss(teacher, student, targets), alone)
    everywhere = kl_loss(teacher, student, torch.zeros(1, 4, dtype=torch.int64))
    assert torch.equal(kl_loss(teacher, student, targets, mask_pad=False), everywhere)
    assert not torch.equal(everywhere, alone)


def test_a_loaded_teacher_reads_padded_sources_as_it_reads_them_alone(lm):
    found = EngineTeacher(lm).logits(teacher_layout(SOURCES, TARGETS))
    assert found.shape == (3, 4, END + 1)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = logits_from(lm, [*source, *target[:-1]], len(source) - 1)
        assert torch.equal(found[row, : len(target)], alone)
        assert not found[row, len(target) :].any()


def test_different_vocabularies_are_refused_or_cut_to_the_smaller_one():
    teacher, student = torch.zeros(1, 2, 9), torch.zeros(1, 2, 7)
    with pytest.raises(UsageError, match="9 tokens and the student 7"):
        same_vocabulary(teacher, student, slice_vocab=False)
    assert [part.shape[-1] for part in same_vocabulary(teacher, student, slice_vocab=True)] == [7, 7]


@pytest.mark.parametrize("lay", [teacher_layout, lambda *rows: student_layout(*rows, END)])
def test_an_empty_source_or_target_is_refused(lay):
    with pytest.raises(UsageError, match="the source of example 1 is empty"):
        lay([[1], []], [[1], [1]])
    with pytest.raises(UsageError, match="the target of example 0 is empty"):
        lay([[1], [1]], [[], [1]])


# The training


def test_with_alpha_0_a_step_is_one_of_plain_cross_entropy_bit_for_bit():
    plain = training(replace(RECIPE, alpha=0.0))
    optimizer = plain.optimizer()
    reference = Mu(plain.net.config)
    reference.load_state_dict(plain.net.state_dict())
    part = [plain.pairs[index] for index in range(4)]
    layout = student_layout([pair.source for pair in part], [pair.target for pair in part], plain.begin)
    loss = torch.nn.functional.cross_entropy(
        reference(layout.source, layout.source_mask, layout.tokens).flatten(0, 1), layout.targets.flatten(),
        ignore_index=IGNORED,
    )  # fmt: skip
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    matrices = [each for each in reference.parameters() if each.dim() > 1]
    others = [each for each in reference.parameters() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=RECIPE.lr, betas=(0.9, 0.98)).step()
    assert plain.step(range(4), 0, optimizer) == loss.item()
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize("targets", ["student", "teacher", "gold"])
def test_each_source_of_targets_lowers_the_kl_to_the_teacher(targets):
    student = training(replace(RECIPE, alpha=1.0, targets=targets, n_dec=6), TableTeacher())
    optimizer = student.optimizer()
    losses = [student.step(range(8), step, optimizer) for step in range(80)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_students_own_targets_are_drawn_by_the_seed():
    student = training(replace(RECIPE, alpha=1.0, n_dec=6), TableTeacher())
    assert torch.equal(student.loss(range(4), 5), student.loss(range(4), 5))
    assert not torch.equal(student.loss(range(4), 5), student.loss(range(4), 6))


def test_the_loss_does_not_depend_on_the_examples_of_a_pass():
    gradients = []
    for micro in (4, 1):
        student = training(replace(RECIPE, alpha=0.0, micro=micro, clip=1e9))
        same = [index for index, pair in enumerate(student.pairs) if len(pair.target) == 4][:4]
        loss = student.step(same, 0, torch.optim.SGD(student.net.parameters(), lr=1.0))
        gradients.append((loss, torch.cat([parameter.detach().flatten() for parameter in student.net.parameters()])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-5)
    assert (gradients[0][1] - gradients[1][1]).abs().max() < 1e-5


def test_an_epoch_holds_every_pair_once_and_the_next_one_in_another_order():
    student = training(replace(RECIPE, alpha=0.0, batch=2), count=80)
    first = student.epoch(0)
    assert Counter(index for batch in first for index in batch) == Counter(range(len(student.pairs)))
    assert max(map(len, first)) <= 2
    assert student.epoch(0) == first
    assert student.epoch(1) != first


def test_what_was_stopped_goes_on_to_the_same_student(tmp_path):
    recipe = replace(RECIPE, alpha=0.5, dropout=0.1, n_dec=6)
    whole = training(recipe, TableTeacher())
    found = whole.fit(tmp_path / "whole", silent)

    class Stopped(Exception):
        pass

    def stop(phase, done, total):
        if done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        training(recipe, TableTeacher()).fit(tmp_path / "parts", stop)
    again = training(recipe, TableTeacher())
    rest = again.fit(tmp_path / "parts", silent)
    assert rest.losses == found.losses[-len(rest.losses) :]
    assert 0 < len(rest.losses) < len(found.losses)
    assert rest.validation_loss == found.validation_loss
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), again.net.parameters(), strict=True))
    (tmp_path / "other").mkdir()
    torch.save({"recipe": "{}"}, tmp_path / "other" / "distill.checkpoint")
    with pytest.raises(UsageError, match="of another recipe"):
        again.fit(tmp_path / "other", silent)


def test_weights_start_at_the_released_deviation_or_at_that_of_their_inputs():
    torch.manual_seed(0)
    for asked, of in ((0.02, lambda weight: 0.02), (0.0, lambda weight: weight.shape[1] ** -0.5)):
        net = Mu(MuConfig(1, 1, 64, 32, 4, 2, 256, 300, 32), asked)
        for name, weight in net.named_parameters():
            if weight.dim() == 2:
                assert weight.std().item() == pytest.approx(of(weight), rel=0.1), name
            elif name.endswith("bias"):
                assert not weight.any()


def test_one_pair_is_learned_by_heart():
    one = Distillation(replace(RECIPE, alpha=0.0), pairs(1), tiny_model().tokenizer, None, END + 1)
    optimizer = one.optimizer()
    losses = [one.step([0], step, optimizer) for step in range(128)]
    assert losses[-1] < 0.01
    assert one.exact_match(one.pairs) == 1.0


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_0():
    rates = [rate(step, 100, 4) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.001


def test_what_is_longer_is_cut_and_counted():
    student = Distillation(
        replace(RECIPE, alpha=0.0, n_enc=5), [Pair([1] * 9, [2, END]), Pair([1], [2, END])], tiny_model().tokenizer
    )
    assert student.truncated == 1
    assert max(len(pair.source) for pair in student.pairs) == 5


def test_pairs_are_read_with_the_token_that_ends_them(tmp_path):
    tokenizer = tiny_model().tokenizer
    (tmp_path / "pairs.jsonl").write_text('{"source": "ab", "target": "c"}\n\n{"prompt": "d", "answer": "ef"}\n')
    found = read_pairs(tmp_path / "pairs.jsonl", tokenizer)
    assert found == [
        Pair(tokenizer.encode("ab"), [*tokenizer.encode("c"), END]),
        Pair(tokenizer.encode("d"), [*tokenizer.encode("ef"), END]),
    ]  # fmt: skip
    for text, says in (
        ('{"source": "a"}', "target"),
        ("[]", "source"),
        ("{", "not JSON"),
        ('{"source": "", "target": "b"}', "source"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UsageError, match=says):
            read_pairs(tmp_path / "bad.jsonl", tokenizer)


def test_the_folder_has_the_hubs_layout(tmp_path):
    student = training(replace(RECIPE, alpha=0.0))
    student.save(tmp_path, 1.5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["n_encoder_layer"], config["decoder_start_token_id"]) == ("mu", 2, END)
    assert (tmp_path / "tokenizer.json").exists()
    assert student._loss_of(tmp_path) == 1.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: replace(RECIPE, alpha=1.5), "alpha must be from 0 to 1"),
        (lambda: replace(RECIPE, targets="mine"), "targets are student, teacher, gold"),
        (lambda: training(RECIPE), "needs a teacher"),
        (lambda: Distillation(RECIPE, [], tiny_model().tokenizer), "no pairs"),
    ],
)  # fmt: skip
def test_what_can_not_be_trained_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_the_student_runs_in_the_engine_with_the_tokens_of_the_network_and_one_encoder_pass(tmp_path):
    student = training(replace(RECIPE, alpha=0.0))
    optimizer = student.optimizer()
    for step in range(40):
        student.step(range(8), step, optimizer)
    student.save(tmp_path, 1.0)
    student.net.eval()
    lm = outlay.load(tmp_path, dtype="float32")
    for pair in student.pairs[:3]:
        layout = student_layout([pair.source], [pair.target], student.begin)
        wanted = student.net.generate(layout.source, layout.source_mask, student.begin, student.end, 8)[0]
        found = lm.generate(pair.source, method="greedy", max_tokens=8)
        assert list(found.tokens) == wanted
        assert found.ledger.encoder_passes == 1


def test_the_cache_of_an_encoder_decoder_is_its_share_of_the_layers(tmp_path):
    """Of 3 decoder layers beside 12 layers, with keys and values of one width: a quarter, cross and own together."""
    shape = MuConfig(8, 3, 64, 64, 1, 1, 64, 64, 80)
    write_mu(tmp_path / "mu", shape)
    write_decoder_only(tmp_path / "plain", 12, 64, 1, 64, 80)
    held = []
    for name in ("plain", "mu"):
        lm = outlay.load(tmp_path / name, dtype="float32")
        held.append(
            lm.generate([1 + i for i in range(48)], method="greedy", max_tokens=16, ignore_eos=True).ledger.kv_held
        )
    assert held[1] / held[0] <= 0.30
