"""What an export has for other programs than JAX."""

from cutnmix_jax.student.network import Student


def made(student: Student, format: str, python: str | None = None) -> dict[str, bytes]:
    """The files of a format."""
    return {}
