"""The HTML report: images to records, pictures and words, and these to one page without a connection."""
