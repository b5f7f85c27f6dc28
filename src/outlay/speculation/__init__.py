"""What several speculative methods share: the round of drafting and verification, drafters, n-grams, and pass costs."""
