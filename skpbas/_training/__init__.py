"""Stored features to a trained detector: settings, the loop and what follows it."""
