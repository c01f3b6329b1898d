"""`freehold eval`: how far a compressed model strays from its original, on a text."""
