"""Batches of examples that have two lengths: buckets, batch sizes, a sampler, and what padding costs.

Żelasko et al. 2025, "Training and Inference Efficiency of Encoder-Decoder Speech Models" (Canary): a batch is padded to
its longest example, so batches are drawn from buckets of like input and output lengths, each with the largest batch
that memory allows. Nothing here knows a model: `DynamicBucketSampler` yields lists of indices for any training loop.
"""

from outlay.batching.buckets import Bin, Buckets
from outlay.batching.memory import MemoryModel, Probe, transformer_memory
from outlay.batching.oracles import AllocatorFits, MemoryFits, StepTimeFits
from outlay.batching.padding import PaddingReport, padding_report
from outlay.batching.sampler import BatchDuration, DynamicBucketSampler, FixedSizes
from outlay.batching.search import OomSearch, merge_equal

__all__ = [
    "AllocatorFits",
    "BatchDuration",
    "Bin",
    "Buckets",
    "DynamicBucketSampler",
    "FixedSizes",
    "MemoryFits",
    "MemoryModel",
    "OomSearch",
    "PaddingReport",
    "Probe",
    "StepTimeFits",
    "merge_equal",
    "padding_report",
    "transformer_memory",
]
