"""What a checkpoint's `generation_config.json` demands of the text, whatever decodes it.

Rules that forbid and force tokens are part of some models: BART's summaries rest on them. They are kept under every
method, or refused by name. Its sampling options and its search (`temperature`, `top_k`, `num_beams`, `max_length`,
...) are defaults of another program: here the request and the method say these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outlay.errors import UsageError
from outlay.models.config import token_ids

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_decoder_ids": (None, []),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "sequence_bias": (None,),
    "watermarking_config": (None,),
}
"""Rules that are not kept here, with the values at which they say nothing."""


@dataclass(frozen=True)
class Timestamps:
    """Tokens that say when speech begins and ends (Radford et al. 2022, section 2.3)."""

    first: int
    """The token of 0 seconds; those behind it are later, `step` seconds each."""
    latest: int | None = None
    """The latest one, counted from `first`, with which a text may begin; None: any."""
    step: float = 0.02
    """Seconds from one to the next."""

    @property
    def none(self) -> int:
        """The token that says that there will be none."""
        return self.first - 1


@dataclass(frozen=True)
class GenerationRules:
    """The rules of a text, with the meaning and the names of `transformers`."""

    start: tuple[int, ...]
    """What the decoder starts with."""
    forced_bos: int | None = None
    """The first token of the text."""
    forced_eos: tuple[int, ...] = ()
    """What may be the last token where `max_tokens` ends the text."""
    suppressed: tuple[int, ...] = ()
    """Tokens that are never written."""
    begin_suppressed: tuple[int, ...] = ()
    """Tokens that are not written first; second, where the first is forced."""
    min_length: int = 0
    """Tokens before an end token may come, those that the decoder starts with included."""
    min_new_tokens: int = 0
    """Tokens of the text before an end token may come."""
    no_repeat_ngram: int = 0
    """Length from which on no sequence of tokens may come twice; 0: any may."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are never written."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that were written, or multiplies those below 0."""
    timestamps: Timestamps | None = None
    """Tokens that come in pairs around each piece of the text and never go back in time; None: there are none."""

    @property
    def edit_logits(self) -> bool:
        """Whether any rule changes logits."""
        return self != GenerationRules(self.start)


def generation_rules(raw: Mapping[str, Any], generation: Mapping[str, Any], *, told: bool = False) -> GenerationRules:
    """Reads the rules of an encoder-decoder.

    Args:
        raw: the content of `config.json`, whose entries hold where there is no `generation_config.json`.
        generation: the content of `generation_config.json`; empty where there is none.
        told: whether requests say what the decoder starts with (`SpeechPrompts`), which `forced_decoder_ids` said once.

    Raises:
        UsageError: for a rule that outlay does not keep, and where nothing says what the decoder starts with.
    """
    said = generation or raw
    for name, silent in REFUSED.items():
        if said.get(name) not in silent and not (told and name == "forced_decoder_ids"):
            raise UsageError(
                f"the model's generation_config.json asks for {name}, which outlay does not do; take it out of a copy "
                "to run the model without"
            )
    start = token_ids(said.get("decoder_start_token_id", raw.get("decoder_start_token_id")))
    start = start or token_ids(said.get("bos_token_id", raw.get("bos_token_id")))[:1]
    if not start:
        raise UsageError("the model's config.json lacks decoder_start_token_id, which its decoder starts with")
    forced = token_ids(said.get("forced_bos_token_id"))
    return GenerationRules(
        start=start[:1],
        forced_bos=forced[0] if forced else None,
        forced_eos=token_ids(said.get("forced_eos_token_id")),
        suppressed=token_ids(said.get("suppress_tokens")),
        begin_suppressed=token_ids(said.get("begin_suppress_tokens")),
        min_length=said.get("min_length") or 0,
        min_new_tokens=said.get("min_new_tokens") or 0,
        no_repeat_ngram=said.get("no_repeat_ngram_size") or 0,
        bad_words=tuple(tuple(word) for word in said.get("bad_words_ids") or ()),
        repetition_penalty=said.get("repetition_penalty") or 1.0,
    )
