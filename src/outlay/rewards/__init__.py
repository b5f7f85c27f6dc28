"""Scorers: what tells good texts from bad ones, by rewards from 0 to 1."""
