"""A judge: an instruct model that tells, of a random sample of accepted rewrites, which are unfaithful."""
