"""everclip: teach a CLIP model new classes and new domains without forgetting the old ones."""

__version__ = "0.1.0"
