"""Reading a run's configuration from the command line, and refusing what cannot be carried out.

Types are checked by ml_collections, which knows them from the defaults in `configs/common.py`; ranges and relations
here.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cutnmix_jax import augment, backbones, data, methods, peers, step
from cutnmix_jax.errors import UsageError, UserError, nearest, one_line
from cutnmix_jax.methods import kdcl
from cutnmix_jax.types import Method

PRECISIONS = ("tf32", "float32", "bfloat16")

Check = Callable[[Any], str]  # what is wrong with a value, or nothing


def whole(low: int, high: int = 2**31 - 1) -> Check:
    """A whole number from `low` to `high`."""
    bound = f"at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"

    def check(value: Any) -> str:
        if isinstance(value, int) and low <= value <= high:
            return ""
        return f"must be a whole number {bound if value < low else f'of at most {high}'}"

    return check


def number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """A finite number from `low` (or, with `above`, greater than it) to `high`."""
    bound = (f"greater than {low:g}" if above else f"at least {low:g}") + (
        f", at most {high:g}" if high < math.inf else ""
    )
    return lambda value: (
        ""
        if math.isfinite(value) and (low < value if above else low <= value) and value <= high
        else f"must be a finite number {bound}"
    )


def present(value: Any) -> str:
    """Anything at all; what it may be is looked at where it is used."""
    return ""


def one_of(valid: Sequence[str]) -> Check:
    """One of some names."""
    return lambda value: "" if value in valid else f"not known; {nearest(value, valid)}"


def increasing_epochs(value: Any) -> str:
    """Milestones: increasing whole numbers from 1 on; none at all is a constant learning rate."""
    whole_numbers = all(isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 1 for epoch in value)
    if whole_numbers and list(value) == sorted(set(value)):
        return ""
    return "must be increasing whole numbers of epochs, for instance (150, 180, 210)"


RANGES: dict[str, Check] = {
    "method": present,
    "weights": present,
    "backbone.name": present,
    "peers": present,
    "data_dir": present,
    "dataset": lambda value: one_of(data.names())(value),
    "train_examples": whole(0),
    "test_examples": whole(0),
    "held_out_examples": whole(0),
    "seed": whole(0, 2**32 - 1),
    "num_peers": whole(1, 64),
    "mapping": one_of(peers.MAPPINGS),
    "precision": one_of(PRECISIONS),
    "loss.name": lambda value: one_of(methods.names())(value),
    "loss.temperature": number(0, above=True),
    "loss.target": lambda value: one_of(kdcl.TARGETS)(value),
    "loss.last_share": number(0, 1),
    "loss.correct": number(0, 1, above=True),
    "loss.rampup_epochs": whole(1),
    "teacher": present,
    "share_trunk": present,
    "views": one_of(step.VIEWS),
    "mix.kind": one_of(augment.MIX_KINDS),
    "mix.prob": number(0, 1),
    "mix.alpha": number(0, above=True),
    "mix.box": one_of(augment.BOX_READINGS),
    "epochs": whole(1),
    "batch_size": whole(2),  # BatchNorm has no deviation over one image
    "optimizer.learning_rate": number(0, 1e6, above=True),
    "optimizer.milestones": increasing_epochs,
    "optimizer.decay": number(0, 1, above=True),
    "optimizer.momentum": number(0, 0.9999),
    "optimizer.weight_decay": number(0),
    "eval_batch_size": whole(1),
    "steps_per_call": whole(0),
    "checkpoint.every_epochs": whole(1),
    "checkpoint.keep": whole(1),
}
_OPTIONAL = ("temperature", "target", "last_share", "correct", "rampup_epochs")  # of loss, where the method has it


def from_flags(file: str, overrides: Sequence[str]) -> ConfigDict:
    """Reads `--config=FILE[:dataset,method]` and the `--config.field=value` that follow it.

    Args:
      file: what was given to `--config`.
      overrides: the remaining arguments of the command line.

    Returns:
      A checked configuration whose fields are fixed.

    Raises:
      UsageError: with the field, what is wrong and the nearest valid name.
    """
    path = Path(file.partition(":")[0])
    if not path.is_file() or path.suffix != ".py":
        known = sorted(str(other) for other in path.parent.glob("*.py") if other.stem not in ("__init__", "common"))
        raise UsageError(
            f"--config: no file {path}; {nearest(str(path), known)}" if known else f"--config: no file {path}"
        )
    values = flags.FlagValues()
    arguments = ["main", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        unread = values(arguments)[1:]
        config = values["config"].value
        if not isinstance(config, ConfigDict):
            raise UsageError(f"--config={file}: its get_config returns no ConfigDict")
    except UserError:
        raise
    except Exception as error:
        raise UsageError(_explain(error, file)) from error
    if unread:
        raise UsageError(f"cannot read {unread[0]!r}: a field is set by --config.field=value")
    if "method" in config_flags.get_override_values(values["config"]):
        raise UsageError("config.method follows from the argument: --config=FILE:dataset,method")
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Raises UsageError at the first field out of range or in conflict with another."""
    for name, ranged in RANGES.items():
        value = _field(config, name)
        if value is None and name.removeprefix("loss.") not in _OPTIONAL:
            raise UsageError(f"config.{name} is missing")
        if value is not None and (wrong := ranged(value)):
            raise UsageError(f"config.{name}={value!r}: {wrong}")
    for name, weight in config.weights.items():
        if wrong := number(0)(weight):
            raise UsageError(f"config.weights.{name}={weight!r}: {wrong}")
    names = peer_names(config)
    if config.mapping == "vmap" and len(set(names)) > 1:
        raise UsageError("config.mapping='vmap' takes peers of one architecture; use unroll")
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) and name not in backbones.names():
            field = "peers" if config.peers else "backbone.name"
            raise UsageError(
                f"config.{field}: no backbone {name!r}; {nearest(name, backbones.names())}, or my_pkg.nets:make"
            )
    _check_method(config, names, make_method(config))


def _check_method(config: ConfigDict, names: Sequence[str], method: Method) -> None:
    """Raises UsageError where the method is not defined for what the other fields say."""
    row = config.method
    if len(names) < method.min_peers:
        leads = " (the last one is its leader)" if method.leaders else ""
        raise UsageError(f"config.num_peers={len(names)}: {row} needs at least {method.min_peers} networks{leads}")
    if method.unmixed and config.mix.kind != "none":
        raise UsageError(f"config.mix.kind={config.mix.kind!r}: {row} is defined for unmixed images; set it to none")
    if method.same_images and not same_images(config):
        raise UsageError(f"{row} needs all networks to see the same images: set config.views=shared and no cutnmix")
    if method.needs_trunk and not config.share_trunk:
        raise UsageError(f"config.share_trunk=False: {row} is defined for networks with one trunk")
    if config.share_trunk and len(set(names)) > 1:
        raise UsageError("config.share_trunk=True takes networks of one architecture; choose config.peers alike")
    if config.share_trunk and config.mapping == "vmap":
        raise UsageError("config.share_trunk=True needs config.mapping='unroll'")
    if method.calibrate and not config.held_out_examples:
        raise UsageError(
            f"config.loss.target={config.loss.target!r} needs --config.held_out_examples, say 5000 of 50000"
        )
    if config.held_out_examples and not method.calibrate:
        raise UsageError(f"config.held_out_examples={config.held_out_examples}: only kdcl's target 'general' uses them")
    needs_teacher = method.teacher.startswith("frozen")
    if needs_teacher and not config.teacher:
        raise UsageError(f"{row} needs a teacher: --config.teacher=DIR, the folder of a finished run on the same data")
    if config.teacher and not needs_teacher:
        raise UsageError(f"config.teacher={config.teacher!r}: {row} has no trained teacher; leave it empty")


def make_method(config: ConfigDict) -> Method:
    """The method that `config.loss` describes."""
    options = config.loss.to_dict()
    return methods.load(options.pop("name"), **options)


def peer_names(config: ConfigDict) -> list[str]:
    """The backbone of each peer; J of them."""
    if config.peers:
        return [name.strip() for name in config.peers.split(",")]
    return [config.backbone.name] * config.num_peers


def same_images(config: ConfigDict) -> bool:
    """Whether all peers see the same images: one crop and flip, and one box, for all."""
    return config.views == "shared" and config.mix.kind != "cutnmix"


def backbone_name(config: ConfigDict) -> str:
    """The backbone as results and folders call it; unlike peers are joined by a plus."""
    names = peer_names(config)
    return "+".join(names if len(set(names)) > 1 else names[:1]).replace(":", ".")


def default_workdir(config: ConfigDict) -> Path:
    """Where a run is kept unless `--workdir` says otherwise."""
    return Path("runs", config.dataset, backbone_name(config), config.method, f"seed{config.seed}")


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "config") -> list[str]:
    """Each field in which two configurations differ, as `config.field: old -> new`."""
    lines: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{prefix}.{name}")
        elif before != after:
            lines.append(f"{prefix}.{name}: {before!r} -> {after!r}")
    return lines


def _field(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        if part not in config:
            return None
        config = config[part]
    return config


def _explain(error: Exception, file: str) -> str:
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
            f"; did you mean {hint.group(1)!r}?" if hint else "; they stand in configs/common.py"
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
