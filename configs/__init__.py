"""Configuration files: one per backbone, all made by `cutnmix_jax.settings.recipe`."""
