"""Shrinks a model: calibration, every matrix of every layer in turn, a folder that others load, and a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.decoder import Layer
from outlay.models.experts import ExpertMlp
from outlay.models.forms import form_of
from outlay.models.forms.form import Form, Held
from outlay.models.linear import pack
from outlay.models.load import Opened, open_model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.progress import ShowProgress, silent
from outlay.shrink.block import Tuning
from outlay.shrink.calibration import Hidden, own_text, text_of
from outlay.shrink.catalog import make
from outlay.shrink.feedback import proxy_errors
from outlay.shrink.folder import ShrunkFolder
from outlay.shrink.shrinker import Moment, Shrinker, Shrunk, Tuned
from outlay.shrink.source import ATTENTION, MLP, Place, Source

ONLY = {"attention": ATTENTION, "mlp": MLP}
"""What `only` may name, and the parts of each."""


@dataclass(frozen=True)
class Report:
    """What a run wrote."""

    folder: Path
    """Where."""
    method: str
    """The method with its options."""
    bits: float
    """Bits a weight of the shrunk matrices, with everything that their file needs for them."""
    file_bits: float
    """Bits a weight of all tensors."""
    tokens: int
    """Tokens of the calibration."""
    text: str
    """Their text."""
    rows: Sequence[Mapping[str, Any]]
    """A row for each matrix: module, layer, part, shape, bits, error, unfed_error, seconds, and the method's counts."""
    seconds: float
    """What the run took; what it found of a run that was stopped is not counted."""
    cpu_seconds: float
    """What it took of the processors, all threads, with the runs before it, but without writing the calibration."""

    def mean_error(self, key: str = "error") -> float:
        """Returns the geometric mean of the matrices' errors."""
        return math.exp(sum(math.log(max(row[key], 1e-30)) for row in self.rows) / len(self.rows))


def run(
    model: str | Path,
    method: str | Shrinker,
    out: str | Path,
    *,
    bits: float | None = None,
    calib: str | Path | Sequence[Sequence[int]] | None = None,
    tokens: int = 8192,
    plan: Mapping[str, str] | None = None,
    only: str | None = None,
    sequential: bool = False,
    tune: Tuning | None = None,
    seed: int = 0,
    progress: ShowProgress = silent,
    on_layer: Callable[[Sequence[Mapping[str, Any]]], None] = lambda rows: None,
) -> Report:
    """Shrinks a model into a folder in the hub's layout.

    A run that was stopped goes on where it was when it is started again with the same settings.

    Args:
        model: An alias, a folder, a .gguf file or a hub id, its weights in floats or a GGUF file's.
        method: A method, or its name with options, as in `"gptq:group=64"`.
        out: The folder to write, which must not be there yet.
        bits: Bits a weight, by which a method that is given by name chooses its options.
        calib: A text file, or sequences of token ids; None: what the model writes itself.
        tokens: Tokens of the calibration, at most.
        plan: Methods with options for modules, by patterns of their names, as `{"*.down_proj": "gptq:bits=8"}`; the
            first that fits counts, and "keep" leaves a matrix as it is.
        only: "attention" or "mlp": what is shrunk; None: both.
        sequential: Whether a layer's moments are of the shrunk layers before it; else of the float model.
        tune: How the codebooks and norms of each layer are tuned once it is shrunk, by `vptq`; None: they are not.
        seed: Fixes what the model writes for its calibration.
        progress: Told how far it is.
        on_layer: Called with the rows of a layer once it is written.

    Raises:
        UsageError: For what can't be used.
        FailureError: Where the folder can't be written.
    """
    started = time.perf_counter()
    methods = _Methods.of(method, bits, plan or {}, only)
    opened = open_model(model, progress)
    source = Source(opened)
    sequences, text = sequences_of(model, opened, calib, tokens, seed, progress)
    cpu_started = time.process_time()
    settings = {
        "model": opened.fingerprint, "method": methods.usual.label, "plan": dict(plan or {}), "only": only,
        "sequential": sequential, "text": sha256(json.dumps(sequences).encode()).hexdigest(),
        **({} if tune is None else {"tune": asdict(tune)}),
    }  # fmt: skip
    folder = ShrunkFolder(Path(out), settings, opened.config.num_layers)
    earlier = folder.cpu_seconds()
    layers = _Layers(opened, source, folder, Hidden(opened.builder, sequences), methods, sequential, tune)
    rows = layers.shrink(progress, on_layer)
    if not rows:
        raise UsageError("the plan keeps every matrix as it is, so there is nothing to shrink")
    others = layers.write_rest(rows)
    taken = time.perf_counter() - started, time.process_time() - cpu_started + earlier
    return _finish(folder, methods.usual, rows, others, (layers.hidden.tokens, text), taken)


@dataclass(frozen=True)
class _Methods:
    """Which method shrinks each matrix."""

    usual: Shrinker
    """The method of what the plan does not name."""
    planned: Mapping[str, Shrinker | None]
    """By patterns of module names, the first that fits counts; None leaves a matrix as it is."""
    only: str | None
    """The part of a layer that is shrunk; None: all."""

    @classmethod
    def of(cls, method: str | Shrinker, bits: float | None, plan: Mapping[str, str], only: str | None) -> _Methods:
        """Makes the methods that `run` was given. Raises `UsageError` for what can't be used."""
        if only is not None and only not in ONLY:
            raise UsageError(f"only {only!r} is not known; it is one of {', '.join(ONLY)}")
        usual = make(method, bits) if isinstance(method, str) else method
        planned = {pattern: None if text == "keep" else make(text, None) for pattern, text in plan.items()}
        _check_one_form([usual, *(each for each in planned.values() if each is not None)])
        return cls(usual, planned, only)

    def of_matrix(self, place: Place) -> Shrinker | None:
        """Returns the method of a matrix; None where it stays as it is."""
        if self.only is not None and place.part not in ONLY[self.only]:
            return None
        return next((each for pattern, each in self.planned.items() if fnmatchcase(place.module, pattern)), self.usual)


@dataclass(frozen=True)
class _Layers:
    """The layers of a model, which are shrunk in turn: what each reads is what those before it give."""

    opened: Opened
    source: Source
    folder: ShrunkFolder
    hidden: Hidden
    methods: _Methods
    sequential: bool
    tune: Tuning | None

    def shrink(
        self, progress: ShowProgress, on_layer: Callable[[Sequence[Mapping[str, Any]]], None]
    ) -> list[dict[str, Any]]:
        """Shrinks all layers and returns the rows of their matrices."""
        rows: list[dict[str, Any]] = []
        for i in range(self.opened.config.num_layers):
            progress("shrinking", i, self.opened.config.num_layers)
            done = self._advance(i)
            rows += done
            on_layer(done)
        return rows

    def _advance(self, i: int) -> list[dict[str, Any]]:
        """Shrinks layer i, or takes it from the folder where it is done, and returns its rows."""
        layer, rows = self.opened.builder.layer(i), self.folder.rows_of(i)
        if rows is None:
            rows, after = self._shrink(i, layer)
        else:
            after = self.hidden.after(i, layer)
        if self.sequential:
            after = self.hidden.after(i, self._written(i, layer, rows))
        self.hidden.advance(after)
        self.source.release()
        return rows

    def write_rest(self, rows: Sequence[dict[str, Any]]) -> int:
        """Writes what was not shrunk, and about the form; returns the number of those weights."""
        norms = self._tuned_norms()
        others = self.folder.write_rest(self.source.rest({row["module"] for row in rows} | norms))
        own = {row["module"]: row.pop("config") for row in rows if row.get("config")}
        self.source.write_about(self.folder.part, _quantization(self.methods.usual, own))
        return others + len(norms) * self.opened.config.hidden_size

    def _shrink(self, i: int, layer: Layer) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Shrinks layer i, tunes it if wanted, and writes it; returns its rows and what the float layer gives."""
        began = time.process_time()
        places = [place for place in self.source.places(i) if self.methods.of_matrix(place) is not None]
        moments, after = self.hidden.moments(i, layer)
        tensors, rows = _shrink_layer(places, self.source, moments, self.methods.of_matrix)
        if self.tune is not None and places:
            shrunk = {row["module"]: row["config"] for row in rows}
            block = self.hidden.block(i, layer, after, *_floats(i, self.source, shrunk), shrunk)
            tuned = self.methods.usual.tune(block, tensors, self.tune)
            tensors, rows = _tune_layer(tuned, self.source, i, moments, rows)
        self.folder.write_layer(i, tensors, rows, time.process_time() - began)
        return rows, after

    def _written(self, i: int, layer: Layer, rows: Sequence[Mapping[str, Any]]) -> Layer:
        """Returns layer i as the folder holds it."""
        config = _quantization(self.methods.usual, {row["module"]: row["config"] for row in rows})
        form = form_of({"quantization_config": config})
        assert form is not None
        norms_of = None if self.tune is None else self.source.norms(i)
        return _rebuilt(layer, i, self.source, Held(self.folder.tensors_of(i)), form, norms_of)

    def _tuned_norms(self) -> set[str]:
        """Returns the modules of the norms that were written with their layers."""
        if self.tune is None:
            return set()
        norms = {name for i in range(self.opened.config.num_layers) for name in self.source.norms(i)}
        return norms & {name.removesuffix(".weight") for name in self.folder.names()}


def sequences_of(
    model: str | Path, opened: Opened, calib: Any, tokens: int, seed: int, progress: ShowProgress
) -> tuple[list[list[int]], str]:
    """Returns the token ids of the calibration's sequences, and what they are."""
    if tokens < 1:
        raise UsageError(f"a calibration needs a token at least, not {tokens}")
    if calib is None:
        return own_text(model, opened, tokens, seed, progress), "written by the model"
    if isinstance(calib, str | Path):
        return text_of(Path(calib), opened, tokens), Path(calib).name
    found = [list(map(int, sequence)) for sequence in calib if len(sequence)]
    if not found:
        raise UsageError("the calibration has no tokens")
    strange = next((token for ids in found for token in ids if not 0 <= token < opened.config.vocab_size), None)
    if strange is not None:
        raise UsageError(f"the calibration has the token {strange}, but the model has {opened.config.vocab_size}")
    return found, "token ids"


def _check_one_form(methods: Sequence[Shrinker]) -> None:
    forms = {method.quantization_config()["quant_method"] for method in methods}
    if len(forms) > 1:
        raise UsageError(
            f"a folder holds matrices of one form, but the plan's methods write {' and '.join(sorted(forms))}"
        )


def _shrink_layer(
    places: Sequence[Place],
    source: Source,
    moments: Mapping[str, Moment],
    method_of: Callable[[Place], Shrinker | None],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Shrinks the matrices of a layer; returns their tensors and rows."""
    tensors: dict[str, Tensor] = {}
    rows = []
    for place in places:
        method, began = method_of(place), time.perf_counter()
        assert method is not None
        weight, moment = source.matrix(place), moments[place.reads]
        if not bool(weight.isfinite().all()):
            raise UsageError(f"{place.module} has weights that are not finite numbers")
        if not bool(moment.h.isfinite().all()):
            raise UsageError(f"what {place.module} reads is not finite; is the model damaged?")
        if moment.tokens == 0:  # an expert that no token of the calibration was sent to
            moment = Moment(torch.eye(weight.shape[1], dtype=torch.float64), 0, moment.name)
        shrunk = method.shrink(weight, moment, place.module)
        tensors |= {f"{place.module}.{part}": tensor for part, tensor in shrunk.tensors.items()}
        rows.append(_row(place, method, weight, moment, shrunk, time.perf_counter() - began))
    return tensors, rows


def _floats(i: int, source: Source, shrunk: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Returns the modules that read each input of a layer, and the weights of those that were not shrunk."""
    modules: dict[str, list[str]] = {}
    for place in source.places(i):
        modules.setdefault(place.reads, []).append(place.module)
    return modules, {place.module: source.matrix(place) for place in source.places(i) if place.module not in shrunk}


def _tune_layer(
    tuned: Tuned, source: Source, i: int, moments: Mapping[str, Moment], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns the tensors of a layer that was tuned, its norms with them, and its rows with their errors now."""
    place_of = {place.module: place for place in source.places(i)}
    before, after = tuned.errors
    new = []
    for row in rows:
        place = place_of[row["module"]]
        error = proxy_errors(source.matrix(place), [tuned.weights[place.module]], moments[place.reads].h)[0]
        new.append(
            {**row, "error": error, "untuned_error": row["error"], "layer_change": after / before if before else 1.0}
        )
    attn, mlp = source.norms(i)
    norms = {f"{attn}.weight": tuned.norms.attn, f"{mlp}.weight": tuned.norms.mlp}
    return {**tuned.tensors, **norms}, new


def _row(
    place: Place, method: Shrinker, weight: Tensor, moment: Moment, shrunk: Shrunk, seconds: float
) -> dict[str, Any]:
    """Returns what is reported of a matrix."""
    made = [shrunk.weight] if shrunk.unfed is None else [shrunk.weight, shrunk.unfed]
    errors = proxy_errors(weight, made, moment.h)
    shape = (weight.shape[0], weight.shape[1])
    return {
        "module": place.module, "layer": place.layer, "part": place.part, "shape": list(shape), "method": method.label,
        "bytes": shrunk.file_bytes, "bits": 8 * shrunk.file_bytes / weight.numel(),
        "error": errors[0], "unfed_error": errors[-1],
        "tokens": moment.tokens, "seconds": round(seconds, 3), "config": method.module_config(shape),
        **{name: float(value) for name, value in shrunk.facts.items()},
    }  # fmt: skip


def _quantization(chosen: Shrinker, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what config.json says about the form, and about each matrix that it doesn't say it of."""
    config = chosen.quantization_config()
    others = {module: each for module, each in own.items() if not each.items() <= config.items()}
    return {**config, "config_for_layers": others} if others else config


def _rebuilt(
    layer: Layer, i: int, source: Source, written: Held, form: Form, norms_of: tuple[str, str] | None
) -> Layer:
    """Returns a layer with the matrices that were written for it, in float32, and the norms `norms_of`."""
    by_input: dict[str, list[Tensor]] = {}
    for place in source.places(i):
        if written.shape(f"{place.module}.{form.mark}") is None:
            by_input.setdefault(place.reads, []).append(source.matrix(place))
        else:
            by_input.setdefault(place.reads, []).append(form.matrix(place.module, written).dequantize())

    def replaced(name: str, before: Any) -> Any:
        return pack(torch.cat(by_input[name]), "float32", before.bias)

    def replaced_mlp(prefix: str, mlp: Mlp) -> Mlp:
        gate_up, down = replaced(f"{prefix}gate_up", mlp.gate_up), replaced(f"{prefix}down", mlp.down)
        return Mlp(gate_up, down, mlp.activation_name, mlp.gated)

    inner = layer.mlp
    mlp: Mlp | ExpertMlp
    if isinstance(inner, ExpertMlp):
        mlps = [replaced_mlp(f"{expert}.", each) for expert, each in enumerate(inner.experts)]
        mlp = ExpertMlp(inner.router, mlps, inner.per_token, inner.normalise)
    elif isinstance(inner, Mlp):
        mlp = replaced_mlp("", inner)
    else:
        raise UsageError("outlay shrink needs layers with an MLP, which a CRATE's are not")

    def tuned(module: str | None, before: Any) -> Any:
        if module is None or written.shape(f"{module}.weight") is None:
            return before
        return RMSNorm(written.tensor(f"{module}.weight"), before.eps)

    attn_norm, mlp_norm = norms_of or (None, None)
    return replace(
        layer,
        attn_norm=tuned(attn_norm, layer.attn_norm),
        qkv=replaced("qkv", layer.qkv),
        out=replaced("out", layer.out),
        mlp_norm=tuned(mlp_norm, layer.mlp_norm),
        mlp=mlp,
    )


def _finish(
    folder: ShrunkFolder,
    method: Shrinker,
    rows: list[dict[str, Any]],
    others: int,
    calibration: tuple[int, str],
    taken: tuple[float, float],
) -> Report:
    """Writes index and report, and gives the folder its name.

    Args:
        folder: What was written.
        method: By which.
        rows: What is reported of the matrices.
        others: How many weights stayed as they were.
        calibration: Tokens and text.
        taken: Seconds, and those of the processors.
    """
    weights = sum(math.prod(row["shape"]) for row in rows)
    bits = 8 * sum(row["bytes"] for row in rows) / weights
    file_bits = 8 * folder.write_index() / (weights + others)
    seconds, cpu_seconds = (round(each, 1) for each in taken)
    report = Report(folder.out, method.label, bits, file_bits, *calibration, rows, seconds, cpu_seconds)
    errors = {"error": report.mean_error(), "unfed_error": report.mean_error("unfed_error")}
    folder.publish({**asdict(report), "folder": folder.out.name, **errors})
    return report


def check(folder: str | Path) -> list[dict[str, Any]]:
    """Checks a folder of shrunk matrices: that each can be read, has its size, and holds finite weights.

    Args:
        folder: The folder.

    Returns:
        A row for each matrix: module, shape, bits, and what is wrong with it, "" if nothing is.

    Raises:
        UsageError: The folder holds no shrunk matrices that are read here.
    """
    path = Path(folder)
    raw = read_json(path / "config.json")
    form = form_of(raw) if raw else None
    if form is None:
        raise UsageError(f"{path} holds no shrunk matrices")
    store, rows = Checkpoint(path, form), []
    for module in store.modules():
        row: dict[str, Any] = {"module": module, "shape": [], "bits": 0.0, "wrong": ""}
        try:
            matrix = form.matrix(module, store)
            row |= {"shape": list(matrix.shape), "bits": 8 * matrix.nbytes / math.prod(matrix.shape)}
            row["wrong"] = "" if bool(matrix.dequantize().isfinite().all()) else "it has weights that are not finite"
        except UsageError as error:
            row["wrong"] = str(error)
        rows.append(row)
    return rows
