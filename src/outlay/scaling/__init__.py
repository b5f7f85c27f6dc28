"""Scaling laws of drafts (Scylla, Yan et al. 2025): how large a draft head pays, predicted from small trainings.

`points` holds measurements, `laws` fits and predicts, `study` trains draft heads and measures them, `timing` times
rounds, `choice` weighs both, `plan` goes through all of it, and `report` prints it.
"""
