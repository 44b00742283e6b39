"""A trained network after its run: loaded, evaluated, taken away, and shown pictures."""
