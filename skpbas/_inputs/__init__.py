"""Validation and decoding of user input: images, targets, masks and parameters."""
