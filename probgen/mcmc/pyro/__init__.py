"""Log densities and batched chains of Pyro models."""
