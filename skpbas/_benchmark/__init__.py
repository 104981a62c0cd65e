"""``skpbas benchmark``: data sets and studies to runs, runs to tables beside the paper's, and these to files."""
