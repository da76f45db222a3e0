"""Scripts of the house; none is installed."""
