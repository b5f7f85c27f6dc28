"""Many texts after one prefix, beside a copy of it for each, in our engine and others; and attention over it alone."""
