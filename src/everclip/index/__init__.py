"""Embed pictures and texts for a search, search in what was embedded, and map new queries to old embeddings."""
