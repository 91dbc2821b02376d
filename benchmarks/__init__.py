"""What is claimed about speed, each against a peer in one run."""
