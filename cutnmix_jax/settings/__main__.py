"""Prints every field of a run as `docs/fields.md` has them: `python -m cutnmix_jax.settings`."""

from cutnmix_jax.settings import listing

if __name__ == "__main__":
    print("\n".join(listing.page()))
