"""The same training in PyTorch, to compare with; never imported by the package."""
