"""Pages to look at: the report of a comparison, the trace of a run. Each is one HTML file that loads nothing."""
