"""Scaling laws of drafts (Scylla): how large a draft head pays, predicted from small trainings."""
