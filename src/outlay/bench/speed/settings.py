"""How much the speed suite measures."""

from __future__ import annotations

from dataclasses import dataclass

from outlay.bench.speed.tasks import Decode, Likelihood, PassCost, PeakProducts, Prompt, ReadMemory, SpeedTask

DISTURBED_TOKENS = 5  # some engines take seconds a token when a core is shared


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured on whom."""

    formats: tuple[str, ...]
    """Weight formats of ours; "/torch" behind one leaves our native kernels out."""
    peers: tuple[str, ...]
    """Other engines."""
    threads: tuple[int, ...]
    """Numbers of threads, in ascending order."""
    rounds: int
    """Rounds after the warm-up."""
    prompt: int
    """Tokens of a prompt."""
    new: dict[int, int]
    """Tokens that each prompt of a batch gets, by the size of the batch."""
    busy: bool
    """Whether decoding is also measured while another program keeps a core busy."""
    brief: bool
    """Whether batches above 1 are measured with the least number of threads only, and no long prompt."""
    text: tuple[int, ...] = ()
    """Tokens whose likelihood everyone states."""

    def tasks(self) -> list[SpeedTask]:
        """Returns all tasks, in their order."""
        tasks: list[SpeedTask] = []
        for threads in self.threads:
            tasks += [ReadMemory(threads), PeakProducts(threads), *self.decodes(threads)]
            tasks += [] if self.brief else [Prompt(threads)]
        tasks += [self.passes(threads) for threads in self.threads if threads == self.threads[0] or not self.brief]
        tasks += self.likelihoods()
        if self.busy:
            tasks.append(self.disturbed())
        return tasks

    def decodes(self, threads: int) -> list[Decode]:
        """Returns the decoding tasks with this number of threads, the smallest batch first."""
        return [
            self.decode(batch, threads)
            for batch in sorted(self.new)
            if batch == 1 or threads == self.threads[0] or not self.brief
        ]

    def decode(self, batch: int, threads: int) -> Decode:
        """Returns one decoding task."""
        return Decode(batch, threads, self.prompt, self.new[batch])

    def passes(self, threads: int) -> PassCost:
        """Returns the task that measures passes by their width."""
        return PassCost(threads, repeats=1 if self.brief else 3)

    def likelihoods(self) -> list[Likelihood]:
        """Returns the tasks that read the text, in chunks of few rows and at once: engines may differ there."""
        widths = (16, len(self.text)) if self.text else ()
        return [Likelihood(self.text, width, self.threads[0]) for width in widths]

    def disturbed(self) -> Decode:
        """Returns the task of decoding one prompt while another program keeps a core busy."""
        return Decode(1, self.threads[-1], self.prompt, DISTURBED_TOKENS, busy=True)
