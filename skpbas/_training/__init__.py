"""From stored features to a trained detector: settings, training loop, exemplars and threshold."""
