"""Who is measured: our engine in each weight format, other engines on the same weights, and the machine's memory."""
