"""From images to stored features: extraction, sampling, and the caches on disk and across fits."""
