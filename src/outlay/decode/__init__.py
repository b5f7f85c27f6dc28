"""Autoregressive methods, a file each. A module here whose class derives from `Method` is in the catalogue by that
alone.
"""
