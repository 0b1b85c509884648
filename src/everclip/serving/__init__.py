"""Answer pictures and texts over HTTP with a model, and follow its folder to the next version and back."""
