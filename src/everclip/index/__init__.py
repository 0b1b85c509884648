"""Embed pictures and texts, search the embeddings, and map new queries to old embeddings."""
