"""What speculative methods are made of: what proposes tokens, the tree of what is proposed, and verifiers that keep the
target's law.
"""
