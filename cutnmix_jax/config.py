"""Reading a run's configuration from the command line, and refusing what cannot be carried out."""

import json
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cutnmix_jax import backbones, data, methods
from cutnmix_jax.errors import UsageError, blaming, nearest, one_line, told
from cutnmix_jax.flags import explain, last_of_each
from cutnmix_jax.schema import MOST_PEERS, OPTIONAL, RANGES, WEIGHT
from cutnmix_jax.types import NEVER, Method

# Fields that change neither the data nor the numbers, so a run may go on with others than it began with.
# The data and a teacher are known by what they hold, wherever they lie.
_FREE_FIELDS = ("config.data_dir:", "config.teacher:", "config.eval_batch_size:", "config.checkpoint.")
# Fields that say which images a step number stands for, on which ones a run is tested, and which networks are saved.
_DATA = ("dataset", "batch_size", "train_examples", "test_examples", "held_out_examples", "seed")
_NETWORKS = ("backbone.name", "num_peers", "peers", "share_trunk")
FIXED_FIELDS = tuple(f"config.{name}:" for name in (*_DATA, *_NETWORKS))


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
    if path.suffix != ".py" or not _is_file(path):
        folders = {path.parent, Path("configs")} if path.parent == Path() else {path.parent}
        found = [other for folder in folders for other in folder.glob("*.py")]
        known = sorted(str(other) for other in found if other.stem not in ("__init__", "common"))
        hint = f"; {nearest(str(path), known)}" if known else ""
        raise UsageError(f"--config: no file {str(path)[:200]}{hint}")
    config = _read(file)
    values, arguments = flags.FlagValues(), ["main", *last_of_each(overrides)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        unread = values(arguments)[1:]
    except Exception as error:
        raise UsageError(explain(error, file)) from error
    if unread:
        raise UsageError(f"cannot read {unread[0]!r}: a field is set by --config.field=value")
    if "method" in config_flags.get_override_values(values["config"]):
        raise UsageError("config.method follows from the argument: --config=FILE:dataset,method")
    check(config)
    _resolved(config, "data_dir")  # as it is written in `config.json`, but told here if it is no folder's name
    if config.teacher:  # the same folder by another name is the same teacher
        config.teacher = _resolved(config, "teacher")
    config.num_peers = len(peer_names(config))  # `peers` replaces it
    return config


def _read(file: str) -> ConfigDict:
    """What `get_config` of a configuration file returns; whatever comes out of the file is told as the file's."""
    path, *argument = file.split(":", 1)
    with blaming(f"--config={file}: the file fails", "mend it; configs/quickstart.py is an example"):
        get_config = runpy.run_path(path, run_name="config_file").get("get_config")
        config = get_config(*argument) if callable(get_config) else None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={file}: no get_config returns a ConfigDict there; see configs/quickstart.py")
    try:
        json.dumps(config.to_dict())
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config={file}: a run cannot keep a field of it ({told(error)}); change it") from error
    return config


def _resolved(config: ConfigDict, field: str) -> str:
    try:
        return str(Path(config[field]).expanduser().resolve())
    except (OSError, RuntimeError) as error:  # links in a circle, a user that is not known
        raise UsageError(f"config.{field}={config[field][:200]}: {one_line(error)}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def check(config: ConfigDict) -> None:
    """Raises UsageError at the first field out of range or in conflict with another."""
    for name, ranged in RANGES.items():
        value = _field(config, name)
        if value is None and name.removeprefix("loss.") not in OPTIONAL:
            raise UsageError(f"config.{name} is missing")
        if value is not None and (wrong := ranged(value)):
            raise UsageError(f"config.{name}={value!r}: {wrong}")
    _check_sizes(config)
    for name, weight in config.weights.items():
        if wrong := WEIGHT(weight):
            raise UsageError(f"config.weights.{name}={weight!r}: {wrong}")
    names = peer_names(config)
    if len(names) > MOST_PEERS:
        raise UsageError(f"config.peers names {len(names)} networks; at most {MOST_PEERS} are trained together")
    if config.mapping == "vmap" and len(set(names)) > 1:
        raise UsageError("config.mapping='vmap' takes peers of one architecture; use unroll")
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) and name not in backbones.names():
            field = "peers" if config.peers else "backbone.name"
            raise UsageError(
                f"config.{field}: no backbone {name!r}; {nearest(name, backbones.names())}, or my_pkg.nets:make"
            )
    method = make_method(config)
    _check_method(config, names, method)
    if len(set(names)) == 1:  # those of unlike networks are seen only once they are made
        check_weights(config.weights, method, (1,) * len(names))


def _check_sizes(config: ConfigDict) -> None:
    """Raises UsageError where the data set has too few images or classes, or too many of them for the other fields."""
    sizes = data.counts(config.dataset)
    for field, split in (("train_examples", "train"), ("test_examples", "test")):
        if (wanted := config[field]) > sizes[split]:
            raise UsageError(
                f"config.{field}={wanted}: {config.dataset} has {sizes[split]} of them; give 1 to {sizes[split]}, or 0 "
                "for all"
            )
    images = config.train_examples or sizes["train"]
    if config.batch_size > images:
        raise UsageError(f"config.batch_size={config.batch_size} is more than the {images} images")
    if config.epochs * (images // config.batch_size) >= NEVER:
        raise UsageError(f"config.epochs={config.epochs}: more steps than an int32 can count; give fewer")
    classes = data.num_classes(config.dataset)
    if (correct := config.loss.get("correct")) is not None and correct < 1 / classes:
        raise UsageError(
            f"config.loss.correct={correct}: with less than 1 / {classes} the teacher denies the image's class; "
            f"give {1 / classes:g} to 1"
        )
    if config.held_out_examples > images - config.batch_size:
        raise UsageError(
            f"config.held_out_examples={config.held_out_examples} leaves no batch of the {images} training images"
        )


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
    if method.views > 1 and config.mix.kind == "cutnmix" and config.mix.box == "own":
        raise UsageError(f"config.mix.box='own': {row} has one label for {method.views} views; choose another reading")
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


def check_weights(weights: Mapping[str, float], method: Method, sizes: tuple[int, ...]) -> None:
    """Raises UsageError unless each loss term has a weight and each weight other than 0 has a term.

    Args:
      weights: a term's name -> its weight.
      method: that has the terms.
      sizes: D of each peer.
    """
    terms = method.terms(sizes)
    if missing := sorted(set(terms) - set(weights)):
        raise UsageError(f"config.weights: no weight for the loss term {missing[0]!r}")
    if excess := sorted(name for name in set(weights) - set(terms) if weights[name] != 0):
        unlike = f"peers with features of {', '.join(map(str, sizes))} have"
        alike = "a single peer has" if len(sizes) == 1 else "this method has"
        who = unlike if len(set(sizes)) > 1 else alike
        raise UsageError(
            f"config.weights.{excess[0]}={weights[excess[0]]:g}: {who} no such loss term, only {', '.join(terms)}; "
            "set it to 0 or choose other peers"
        )
    if not any(weights[name] for name in terms):
        raise UsageError("config.weights: all of them are 0, so nothing would be learned")


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


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Like `difference`, without the fields that change neither the data nor the numbers."""
    return [line for line in difference(old, new) if not line.startswith(_FREE_FIELDS)]


def _field(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return None
        config = config[part]
    return config
