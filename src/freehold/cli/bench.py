"""`freehold bench`: a model's speed, with this machine's limits measured in the same run."""
