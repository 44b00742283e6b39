"""The overrides of a command line, `--config.field=value`: which of them counts, and what is wrong with one."""

import difflib
import re
from collections.abc import Sequence

from absl import flags

from cutnmix_jax.errors import one_line


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """A field that is given twice has its last value; ml_collections would join two tuples."""
    last = {text.partition("=")[0]: text for text in overrides if text.startswith("--config.") and "=" in text}
    return [text for text in overrides if last.get(text.partition("=")[0], text) == text]


def unset(arguments: Sequence[str], optional: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes out what sets an optional field to `none`, which ml_collections knows no value for.

    Args:
      arguments: of the command line.
      optional: the paths of the fields that may be None.

    Returns:
      The paths of fields that are set to none in the end, and the other arguments.
    """
    paths = {f"--config.{path}": path for path in optional}
    pairs = [(text, *text.partition("=")[::2]) for text in arguments]
    last = {flag: value for _, flag, value in pairs}
    none = [path for flag, path in paths.items() if last.get(flag, "").lower() == "none"]
    return none, [text for text, flag, value in pairs if not (flag in paths and value.lower() == "none")]


def explain(error: Exception, file: str) -> str:
    """One line for what ml_collections and absl raise, which is mostly right but long."""
    text = one_line(error).replace("\\n", " ").replace("\\'", "'")
    if isinstance(error, flags.UnrecognizedFlagError):
        guess = difflib.get_close_matches(error.flagname.partition(".")[0], ["config", "workdir"], n=1)
        return f"unknown flag --{error.flagname}" + (f"; did you mean --{guess[0]}?" if guess else "; see --help")
    if isinstance(error, AttributeError | KeyError):
        field = re.search(r"'([\w.]+)'", text)
        named = f" {field.group(1)!r}" if field else ""
        hint = re.search(r'Did you mean "([\w.]+)"', text)
        return f"--config: no field{named}" + (
            f"; did you mean {hint.group(1)!r}?" if hint else "; they stand in docs/fields.md"
        )
    for raised, meant in _PARSERS.items():
        if raised in text:
            return f"{text.partition(': ')[0].removeprefix('flag ')}: must be {meant}"
    if isinstance(error, flags.Error):
        return text.removeprefix("flag ")[:300]
    return f"--config={file}: {type(error).__name__}: {text[:300]}"


# What the parsers of int, float and bool say, and what it means to someone who typed a flag.
_PARSERS = {
    "literal for int": "a whole number",
    "string to float": "a number",
    "Non-boolean": "true or false",
    "as a ConfigDict": "set field by field, as --config.group.field=value",
}
