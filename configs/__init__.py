"""Configuration files: one per backbone, all made by `common.py`."""
