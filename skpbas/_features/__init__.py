"""Images to stored features: extraction, the store that training reads, the cache of ``memory``, sampling."""
