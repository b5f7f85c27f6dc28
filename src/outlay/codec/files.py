"""Compressed files: the best of a model and xz is kept, and what was written is read again or refused with a reason."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from outlay import kernels
from outlay.budget import Ledger, declare
from outlay.codec.coder import CODER, pack_words, refuse_without_kernels, unpack_words
from outlay.codec.container import Block, Container, CorruptStream, Decoder
from outlay.codec.symbols import bytes_of, symbols_of
from outlay.codec.text import RAW, TextCodec, cut, probe
from outlay.engine.submission import DraftSource
from outlay.errors import UsageError
from outlay.models.digest import weights_digest
from outlay.models.load import Model

PRESET = 9 | lzma.PRESET_EXTREME
MAX_SIZE = 1 << 32
"""Bytes that a file may decode to, unless the caller says otherwise."""
DICTIONARY = 1 << 26  # bytes of xz -9's dictionary

for _name, _unit in (("bytes_in", ""), ("bytes_out", ""), ("ideal_bits", "bits")):
    declare(_name, _unit)

Key = TypeVar("Key", bound=Hashable)
OnBlock = Callable[[int], None]
"""Called with the bytes of the original that were just worked on."""


def _nobody(amount: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Compressed:
    """A compressed original."""

    container: Container
    """What was kept."""
    sizes: dict[str, int]
    """The bytes of the file by what could have been kept; what was given up early has what it had by then."""
    ledger: Ledger
    """What it cost, with `bytes_in`, `bytes_out` and, of a model, `ideal_bits`."""

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.container.pack()


class Written(NamedTuple):
    """What a coder with a model made of an original."""

    container: Container
    ideal_bits: float
    ledger: Ledger


class Reader(Protocol):
    """Decompresses files of one kind with a model."""

    kind: str

    def read(self, containers: Iterator[tuple[Any, Container]], on_block: OnBlock) -> Iterator[tuple[Any, Decoded]]:
        """Yields what each container holds, block by block."""

    def close(self) -> None:
        """Ends what is at work."""

    def fits(self, container: Container) -> None:
        """Raises `UsageError`, in one line, where a container was written with another model, code or arithmetic."""


class Coder(Reader, Protocol):
    """Compresses originals of one kind with a model, without loss, and decompresses them."""

    def write(
        self, originals: Iterator[tuple[Any, bytes, int]], on_block: OnBlock
    ) -> Iterator[tuple[Any, Written | int]]:
        """Yields each original's container, or the bytes that it had when it was above its limit.

        Args:
            originals: Pairs of a key and the bytes, with the size from which on the file is of no use.
            on_block: Told of progress.
        """


@dataclass
class Decoded:
    """What a file decoded to."""

    blocks: list[bytes] = field(default_factory=list)
    """The bytes of each block; b"" for one that is damaged."""
    missing: dict[int, str] = field(default_factory=dict)
    """Why a block is missing, by its index."""
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def data(self) -> bytes:
        """All blocks that are there."""
        return b"".join(self.blocks)


class TextCoder:
    """Compresses any bytes with a language model."""

    kind = "text"

    def __init__(self, codec: TextCodec, draft: DraftSource | None = None) -> None:
        self.codec, self.draft = codec, draft
        self.decoder = text_decoder(codec)

    def write(
        self, originals: Iterator[tuple[Key, bytes, int]], on_block: OnBlock
    ) -> Iterator[tuple[Key, Written | int]]:
        """See `Coder.write`. Blocks of several originals share passes."""
        tokenizer, vocab = self.codec.model.tokenizer, self.codec.vocab
        jobs: list[_TextJob[Key]] = []

        def blocks() -> Iterator[Sequence[int]]:
            for key, data, limit in originals:
                symbols = symbols_of(data, tokenizer, vocab)
                job = _TextJob(key, data, limit, list(cut(symbols, self.codec.block)) if data else [])
                jobs.append(job)
                for place, block in enumerate(job.blocks):
                    if job.coded_bytes > limit:
                        job.given_up = True
                        break
                    job.asked = place + 1
                    yield block
                job.all_asked = True

        for method, result in self.codec.write(blocks()):
            job = next(each for each in jobs if len(each.done) < each.asked)
            coded = pack_words(kernels.ans_encode(method.coded.intervals))
            original = bytes_of(list(job.blocks[len(job.done)]), tokenizer, vocab)
            job.done.append((Block.of(len(method.coded.intervals), coded, original), coded))
            job.coded_bytes += len(coded)
            job.ideal_bits += method.coded.ideal_bits
            job.ledger += result.ledger
            on_block(len(original))
            yield from self._finished(jobs)
        yield from self._finished(jobs)

    def _finished(self, jobs: list[_TextJob[Key]]) -> Iterator[tuple[Key, Written | int]]:
        while jobs and jobs[0].all_asked and len(jobs[0].done) == jobs[0].asked:
            job = jobs.pop(0)
            if job.given_up:
                yield job.key, job.coded_bytes
                continue
            blocks, coded = zip(*job.done, strict=True) if job.done else ((), ())
            container = Container.of(self.kind, job.data, self.decoder, blocks, coded)
            yield job.key, Written(container, job.ideal_bits, job.ledger)

    def read(self, containers: Iterator[tuple[Key, Container]], on_block: OnBlock) -> Iterator[tuple[Key, Decoded]]:
        """See `Coder.read`. Blocks of several files are decoded together."""
        tokenizer, vocab = self.codec.model.tokenizer, self.codec.vocab
        jobs: list[_ReadJob[Key]] = []
        order: list[tuple[_ReadJob[Key], int]] = []

        def blocks() -> Iterator[tuple[Any, int]]:
            for key, container in containers:
                job = _ReadJob(key, container)
                jobs.append(job)
                for place, block in enumerate(container.blocks):
                    try:
                        self._refuse_strange(container, place)
                        words = unpack_words(container.coded(place))
                    except CorruptStream as error:
                        job.decoded.missing[place] = str(error)
                        continue
                    order.append((job, place))
                    yield words, block.symbols
                job.all_asked = True

        for method, result in self.codec.read(blocks(), self.draft):
            job, place = order.pop(0)
            job.take(place, bytes_of(method.symbols, tokenizer, vocab) if method.whole else None)
            job.decoded.ledger += result.ledger
            on_block(job.container.blocks[place].original)
            yield from _read(jobs)
        yield from _read(jobs)

    def close(self) -> None:
        """See `Coder.close`."""
        self.codec.close()

    def fits(self, container: Container) -> None:
        """See `Coder.fits`."""
        theirs, mine, name = container.decoder, self.decoder, self.codec.model.name
        if container.kind != self.kind:
            raise UsageError(f"the file was compressed with a {container.kind} model, and {name} is a language model")
        refuse_other(theirs, mine, name)
        if theirs.kv_dtype != self.codec.kv_dtype or theirs.block > self.codec.block:
            raise ValueError("a file is read by a codec that was opened for it")

    def _refuse_strange(self, container: Container, place: int) -> None:
        if not 1 <= container.blocks[place].symbols <= self.codec.block:
            raise CorruptStream("it can't have that many symbols", place)


@dataclass
class _TextJob(Generic[Key]):
    """An original that is being compressed."""

    key: Key
    data: bytes
    limit: int
    blocks: list[Sequence[int]]
    asked: int = 0
    all_asked: bool = False
    given_up: bool = False
    coded_bytes: int = 0
    ideal_bits: float = 0.0
    done: list[tuple[Block, bytes]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)


@dataclass
class _ReadJob(Generic[Key]):
    """A file that is being read."""

    key: Key
    container: Container
    all_asked: bool = False
    decoded: Decoded = field(default_factory=Decoded)
    done: dict[int, bytes] = field(default_factory=dict)

    def take(self, place: int, original: bytes | None) -> None:
        """Takes in a block; None where its stream did not end with it."""
        try:
            if original is None:
                raise CorruptStream("it holds other symbols than it should", place)
            self.container.check(place, original)
            self.done[place] = original
        except CorruptStream as error:
            self.decoded.missing[place] = str(error)

    @property
    def ended(self) -> bool:
        """Whether every block was read or is missing."""
        return self.all_asked and len(self.done) + len(self.decoded.missing) == len(self.container.blocks)


def _read(jobs: list[_ReadJob[Key]]) -> Iterator[tuple[Key, Decoded]]:
    while jobs and jobs[0].ended:
        job = jobs.pop(0)
        job.decoded.blocks = [job.done.get(place, b"") for place in range(len(job.container.blocks))]
        yield job.key, job.decoded


def text_decoder(codec: TextCodec) -> Decoder:
    """Returns what a file says of the language model that decodes it."""
    return Decoder(
        model=codec.model.name,
        weights=weights_digest(codec.model),
        format=codec.model.format,
        kv_dtype=codec.kv_dtype,
        arithmetic=kernels.ARITHMETIC,
        probe=probe(codec.model, codec.kv_dtype),
        writer=this_writer(),
        alphabet=codec.vocab + RAW,
        block=codec.block,
        stream="block",
        coder=CODER,
    )


def this_writer() -> str:
    """Returns the version and the instruction set that files name."""
    from outlay import __version__

    return f"outlay {__version__}, {kernels.isa()}"


def refuse_other(theirs: Decoder, mine: Decoder, name: str) -> None:
    """Raises `UsageError`, in one line, where a file was written by a model, code or arithmetic that is not ours."""
    refuse_without_kernels()
    sides = f"it was written by {theirs.writer}, and this is {mine.writer}"
    if theirs.weights != mine.weights:
        raise UsageError(
            f"the file was compressed with {theirs.model or 'a model'} (SHA-256 {theirs.weights.hex()[:16]}), and the "
            f"weights of {name} are others ({mine.weights.hex()[:16]}); name that model with --model"
        )
    if theirs.coder != mine.coder or theirs.stream != mine.stream or theirs.alphabet != mine.alphabet:
        raise UsageError(f"the file was compressed with another coder or alphabet, which this version lacks: {sides}")
    if theirs.arithmetic != mine.arithmetic:
        raise UsageError(
            f"the file was compressed with arithmetic {theirs.arithmetic}, and {mine.arithmetic} is used here: {sides}"
        )
    if theirs.format != mine.format:
        raise UsageError(f"the file was compressed with weights held in {theirs.format}, not {mine.format}: {sides}")
    if theirs.probe != mine.probe:
        raise UsageError(f"the model gives other probabilities here than where the file was compressed: {sides}")


def xz_container(data: bytes) -> Container:
    """Returns the container of some bytes as xz compresses them."""
    coded = lzma.compress(data, lzma.FORMAT_RAW, filters=_lzma_filters(len(data)))
    return Container.of("xz", data, Decoder(), [Block.of(0, coded, data)], [coded])


def _lzma_filters(size: int) -> list[dict[str, int]]:
    """Returns what xz -9e does to `size` bytes, with no larger a dictionary than these need."""
    return [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": min(max(size, 4096), DICTIONARY)}]


def _read_xz(container: Container, on_block: OnBlock) -> Decoded:
    found = Decoded()
    for place, block in enumerate(container.blocks):
        try:
            coded = container.coded(place)
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters(block.original))
            original = decompressor.decompress(coded, block.original + 1)
            container.check(place, original)
        except lzma.LZMAError:
            found.missing[place] = str(CorruptStream("it is no LZMA stream", place))
            original = b""
        except CorruptStream as error:
            found.missing[place] = str(error)
            original = b""
        found.blocks.append(original)
        on_block(block.original)
    return found


def compress_all(
    originals: Iterable[tuple[Key, bytes]], coders: Sequence[Coder] = (), on_block: OnBlock = _nobody
) -> Iterator[tuple[Key, Compressed]]:
    """Compresses originals; of each, the smallest of what the coders and xz make is kept.

    Args:
        originals: Pairs of a key and the bytes, which are asked for as they are worked on.
        coders: Those with a model.
        on_block: Told of progress.

    Yields:
        Each key with what was kept, in order.
    """
    refused: dict[int, dict[str, int]] = {}
    numbered = enumerate(originals)
    if not coders:
        for _, (key, data) in numbered:
            best = xz_container(data)
            on_block(len(data))
            yield key, _kept(best, {"xz": len(best.pack())}, len(data), Ledger())
        return
    (coder,) = coders  # one model at a time; more would each be asked for all originals
    known: dict[int, tuple[Any, bytes, Container]] = {}

    def limited() -> Iterator[tuple[int, bytes, int]]:
        for number, (key, data) in numbered:
            plain = xz_container(data)
            known[number] = (key, data, plain)
            refused[number] = {"xz": len(plain.pack())}
            yield number, data, refused[number]["xz"]

    for number, written in coder.write(limited(), on_block):
        key, data, plain = known.pop(number)
        sizes, best, ledger = refused.pop(number), plain, Ledger()
        if isinstance(written, Written):
            sizes[coder.kind], ledger = len(written.container.pack()), written.ledger
            if sizes[coder.kind] < sizes["xz"]:
                best = written.container
            ledger.extras["ideal_bits"] = written.ideal_bits
        else:
            sizes[coder.kind] = written
        yield key, _kept(best, sizes, len(data), ledger)


def _kept(container: Container, sizes: dict[str, int], original: int, ledger: Ledger) -> Compressed:
    ledger.extras |= {"bytes_in": original, "bytes_out": len(container.pack())}
    return Compressed(container, sizes, ledger)


def decompress_all(
    containers: Iterable[tuple[Key, Container]],
    coder: Reader | None = None,
    on_block: OnBlock = _nobody,
    *,
    max_size: int = MAX_SIZE,
) -> Iterator[tuple[Key, Container, Decoded]]:
    """Decodes files.

    Args:
        containers: Pairs of a key and a file.
        coder: What decodes those that are not of xz.
        on_block: Told of progress.
        max_size: Bytes that a file may decode to.

    Yields:
        Each key with its container and what it decoded to: see `whole`.

    Raises:
        UsageError: For a file that needs another coder, or is larger than `max_size`.
    """
    plain: list[tuple[Key, Container]] = []
    coded: list[tuple[Key, Container]] = []
    for key, container in containers:
        if container.original > max_size:
            raise UsageError(
                f"it decodes to {container.original:,} bytes, more than {max_size:,}; allow more with --max-size"
            )
        (plain if container.kind == "xz" else coded).append((key, container))
    for key, container in plain:
        yield key, container, _read_xz(container, on_block)
    if not coded:
        return
    if coder is None:
        raise UsageError(f"the file was compressed with {coded[0][1].decoder.model}; name that model")
    for _, container in coded:
        coder.fits(container)
    by_key = dict(coded)
    for key, decoded in coder.read(iter(coded), on_block):
        yield key, by_key[key], decoded


def whole(container: Container, decoded: Decoded) -> bytes:
    """Returns the original that a file decoded to.

    Raises:
        CorruptStream: Where a block is missing or the whole is not what was written.
    """
    if decoded.missing:
        block, why = min(decoded.missing.items())
        raise CorruptStream(why.partition(": ")[2], block)
    if len(decoded.data) != container.original or sha256(decoded.data).digest() != container.digest:
        raise CorruptStream("it does not decode to what was written")
    return decoded.data


def missing_ranges(container: Container, decoded: Decoded) -> list[tuple[int, int, int, str]]:
    """Returns the missing blocks: index, first byte of the original, the byte behind the last, and why."""
    found, begin = [], 0
    for place, block in enumerate(container.blocks):
        if place in decoded.missing:
            found.append((place, begin, begin + block.original, decoded.missing[place].partition(": ")[2]))
        begin += block.original
    return found


def open_text(
    model: Model, container: Container | None = None, *, kv_dtype: str = "int8", block: int | None = None,
    lanes: int | None = None, draft: DraftSource | None = None,
) -> TextCoder:  # fmt: skip
    """Returns the coder of a language model, for writing or for reading what a container holds.

    Args:
        model: The model.
        container: What is to be read; None for writing.
        kv_dtype: For writing: how keys and values are held.
        block: For writing: symbols of a block, at most; None: 1,024, or what the model's context holds.
        lanes: Blocks that are read at a time.
        draft: What runs ahead of the reader.

    Raises:
        UsageError: For a model that does not run in our kernels whole, or that is not the container's.
    """
    context = model.decoder.config.max_positions
    size = min(1024, context - 1) if block is None else block
    if container is not None:
        kv_dtype, size = container.decoder.kv_dtype, container.decoder.block
        if not 1 <= size < context:
            raise UsageError(f"the file has blocks of {size} tokens, and {model.name} reads at most {context - 1}")
    codec = TextCodec(model, kv_dtype=kv_dtype, block=size, lanes=lanes)
    coder = TextCoder(codec, draft)
    if container is not None:
        try:
            coder.fits(container)
        except UsageError:
            codec.close()
            raise
    return coder


def describe(container: Container) -> dict[str, Any]:
    """Returns what a file says of itself, as JSON can hold it."""
    decoder = container.decoder
    return {
        "kind": container.kind,
        "bytes": len(container.pack()),
        "original_bytes": container.original,
        "sha256": container.digest.hex(),
        **{
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in decoder._asdict().items()
            if value and name != "details"
        },
        "header_bytes": container.overhead,
        "blocks": [block._asdict() for block in container.blocks],
    }
