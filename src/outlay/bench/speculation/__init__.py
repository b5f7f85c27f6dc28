"""What drafting gains on chat, code and summaries, beside other engines, in one run."""
