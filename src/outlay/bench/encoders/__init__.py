"""Encoder-decoders, speech, batches of two lengths and CRATE in one run, beside their peers."""
