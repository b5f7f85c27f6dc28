"""One text of a request: a run of the engine, and a second one where its reasoning had to be ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from outlay.budget import Ledger
from outlay.engine.handle import Handle
from outlay.engine.session import TextChunk
from outlay.models.reasoning import written
from outlay.serve.answers import Answer
from outlay.serve.asked import Asked
from outlay.serve.thoughts import Thoughts

Submit = Callable[[Sequence[int], int, int, Ledger | None], Awaitable[Handle]]
FORCED = "forced"  # the origin of the closing words


class TextRun:
    """Writes one text.

    Where a `thinking_token_budget` is used up, the run is ended, the closing words and the closing tag are put behind
    its tokens, and a second run goes on from there. It finds all that the first one computed in the cache.

    Args:
        asked: what is asked for.
        index: which text of the request it is.
        prompt: token ids.
        seed: fixes its draws.
        thoughts: tells reasoning from the answer; None where the model does not think.
        submit: hands in a run: prompt, seed, new tokens at most, what has been spent before.
    """

    def __init__(
        self, asked: Asked, index: int, prompt: list[int], seed: int, thoughts: Thoughts | None, submit: Submit
    ) -> None:
        self.index = index
        self._asked, self._prompt, self._seed, self._thoughts, self._submit = asked, prompt, seed, thoughts, submit
        self._tokenizer = asked.hosted.lm.model.tokenizer
        self._words, self._room = self._closing_words()
        self._handles: list[Handle] = []
        self._tokens: list[int] = []  # those that were forced included
        self._reasoning_tokens = 0
        self._over = self._enough = False

    async def start(self) -> None:
        """Hands in the run."""
        if self._room == 0 and self._thoughts is not None and self._thoughts.thinking:
            self._over = True
            self._tokens += self._closing().tokens
        await self._go_on(None)

    def enough(self) -> None:
        """Ends the text: what would follow is not shown."""
        self._enough = True
        self._handles[-1].cancel()

    async def chunks(self) -> AsyncIterator[TextChunk]:
        """Yields the text as it comes."""
        if self._over:  # from the start
            yield self._closing()
        else:
            async for chunk in self._handles[0].achunks():
                yield self._counted(chunk)
                if self._over:
                    break
            if not self._over:
                return
            self._handles[0].cancel()
            spent = (await self._handles[0].wait()).ledger
            yield self._closing()
            self._tokens += self._closing().tokens
            if self._enough or len(self._tokens) >= self._asked.max_tokens:
                return
            await self._go_on(spent)
        async for chunk in self._handles[-1].achunks():
            self._tokens += chunk.tokens
            yield chunk

    def answer(self) -> Answer:
        """Returns the whole text and what it cost, after all of its chunks."""
        results = [handle.result() for handle in self._handles]
        last = results[-1]
        cut_off = self._over and len(self._tokens) >= self._asked.max_tokens
        return Answer(
            text=last.text,
            tokens=self._tokens,
            finish_reason="stop" if self._enough else "length" if cut_off else last.finish_reason,
            ledger=sum((result.ledger for result in results), Ledger()),
            method=last.method,
            prompt_tokens=len(self._prompt),
            cached_tokens=results[0].cached_tokens,
            cap="" if self._enough or cut_off else last.cap,
            logprobs=[each for result in results for each in result.logprobs or ()]
            if last.logprobs is not None
            else None,
            alternatives=last.alternatives,
            reasoning_tokens=self._reasoning_tokens,
        )

    async def _go_on(self, spent: Ledger | None) -> None:
        left = max(1, self._asked.max_tokens - len(self._tokens))
        self._handles.append(await self._submit(self._prompt + list(self._tokens), self._seed, left, spent))

    def _counted(self, chunk: TextChunk) -> TextChunk:
        """Counts a chunk's tokens; returns what of it is shown, less where the reasoning's limit lies within it."""
        if self._thoughts is None or self._thoughts.closed:
            self._tokens += chunk.tokens
            return chunk
        for place, token in enumerate(chunk.tokens):
            if self._room is not None and self._thoughts.thinking and len(self._tokens) >= self._room:
                self._over, self._reasoning_tokens = True, len(self._tokens) + len(self._words)
                shown = len(self._tokenizer.decode(chunk.tokens[:place]))
                return TextChunk(chunk.text[:shown], chunk.origin, chunk.tokens[:place], chunk.logprobs[:place])
            self._tokens.append(token)
            self._thoughts.push(written(self._tokenizer, [token]))
            if self._thoughts.closed:
                self._reasoning_tokens = len(self._tokens)
                self._tokens += chunk.tokens[place + 1 :]
                return chunk
        if self._thoughts.thinking:
            self._reasoning_tokens = len(self._tokens)
        return chunk

    def _closing_words(self) -> tuple[list[int], int | None]:
        """Returns the tokens of the closing words, none where the limit is shorter, and the room before them."""
        limit = self._asked.thinking_tokens
        if limit is None:
            return [], None
        words = self._tokenizer.encode(self._asked.closing_words)
        return (words, limit - len(words)) if len(words) <= limit else ([], limit)

    def _closing(self) -> TextChunk:
        tags = self._asked.hosted.tags
        assert tags is not None, "only a text with tags has reasoning to end"
        tag = f"\n{tags.closing}\n\n"
        tokens = (*self._words, *self._tokenizer.encode(tag, special=True))
        return TextChunk(self._tokenizer.decode(self._words) + tag, FORCED, tokens)
