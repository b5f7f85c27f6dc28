"""Batches by two lengths: padding and batch sizes of samplers under one memory model, lhotse's beside ours."""
