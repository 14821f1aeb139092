"""The new embedding rows, and the model that carries them."""
