"""Speculative methods: tokens are drafted cheaply and scored by the target in one pass."""
