"""Relations between the fields of a run: what each of them alone does not tell."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cutnmix_jax import backbones, console, data, methods, own_code
from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.fields import LARGEST
from cutnmix_jax.method import TEACHERS, Setup
from cutnmix_jax.names import check_any_weight
from cutnmix_jax.settings import MOST_PEERS, SHARD, UNROLL, VMAP, Settings, tree

_TERMS_TAKEN = "loss|accuracy"
_HEADS_TAKEN = r"per_peer|ensemble|(peer|mean_teacher|average)_\d+"


def checked(fields: Settings | Mapping[str, Any]) -> Settings:
    """Settings that can be carried out, whoever made them; `peers` replaces `num_peers`, a folder has its whole path.

    Raises:
      UsageError: at the first field that has a value that it may not have, alone or beside the others.
      DataError: the pictures of the data set are not prepared.
    """
    found = tree.of_settings(fields) if isinstance(fields, Settings) else fields
    settings = tree.to_settings(found)
    if found is not fields:  # a mapping in the place of a group
        tree.check_groups(found, settings)
    dataset, image_size = data.settled(settings.dataset, settings.data_dir, settings.image_size)
    settings = dataclasses.replace(settings, dataset=dataset, image_size=image_size)
    check(settings)
    count = len(settings.backbones)
    if settings.num_peers not in (count, methods.row(settings.method).num_peers):
        console.warn(f"config.num_peers={settings.num_peers}: config.peers names {count} networks, and these count")
    return dataclasses.replace(settings, num_peers=count)


def check(settings: Settings) -> None:
    """Raises UsageError at the first field that cannot be carried out beside the others."""
    check_row(settings.method, methods.name_of(settings.loss))
    _check_sizes(settings)
    _check_networks(settings)
    check_any_weight(settings.weights)
    if unknown := sorted(set(settings.ramp_up.terms) - set(settings.weights)):
        raise UsageError(
            f"config.ramp_up.terms: no weight of a term {unknown[0]!r}; {nearest(unknown[0], settings.weights)}"
        )
    if settings.optimizer.warm_up_epochs > settings.epochs:
        raise UsageError(
            f"config.optimizer.warm_up_epochs={settings.optimizer.warm_up_epochs:g}: more than the {settings.epochs} "
            "epochs"
        )
    method = settings.loss
    if settings.held_out_examples and not method.calibrates:
        raise UsageError(
            f"config.held_out_examples={settings.held_out_examples}: {settings.method} does not use them, with the "
            "options that it has; leave it out"
        )
    if method.calibrates and not settings.held_out_examples:
        raise UsageError(
            f"config.held_out_examples=none: {settings.method} looks at such images, with the options that it has; say "
            "5000 of 50000, or choose other options"
        )
    if unknown := [name for name in method.teachers if name not in TEACHERS]:
        raise UsageError(f"{settings.method}: no teacher {unknown[0]!r}; {nearest(unknown[0], TEACHERS)}")
    if method.needs_teacher and not settings.teacher:
        raise UsageError(
            f"{settings.method} needs a teacher: --config.teacher=DIR, the folder of a finished run on the same data"
        )
    if settings.teacher and not method.needs_teacher:
        raise UsageError(
            f"config.teacher={settings.teacher!r}: {settings.method} has no trained teacher; leave it out, or "
            f"choose {' or '.join(_taught())}"
        )
    if settings.teacher_which != "last" and not settings.teacher:
        raise UsageError(
            f"config.teacher_which={settings.teacher_which}: there is no teacher; leave it out, or name one with "
            "--config.teacher=DIR"
        )
    if not method.needs_teacher:  # the other ones are checked with their teacher
        method.check(setup(settings))


def _taught() -> list[str]:
    return [name for name, row in methods.rows_by_name().items() if row.method.needs_teacher]


def facts(settings: Settings) -> "data.Facts":
    """What is known of the data of a run before they are read."""
    return data.facts(settings.dataset, settings.data_dir, settings.image_size)


def setup(settings: Settings, teacher: str | None = None) -> Setup:
    """What the method is asked to train with.

    Args:
      settings: of the run.
      teacher: the backbone of its trained teacher.
    """
    return Setup(
        row=settings.method,
        num_classes=facts(settings).num_classes,
        backbones=settings.backbones,
        share_trunk=settings.share_trunk,
        mix_kind=settings.mix.kind,
        same_images=settings.same_images,
        held_out_examples=settings.held_out_examples or 0,
        teacher=teacher,
    )


def check_names(settings: Settings, terms: Sequence[str], heads: Sequence[str]) -> None:
    """Raises UsageError where a term or a head has a name that a row of `metrics.jsonl` has for something else.

    Or where the accuracy that the tables show of the row is none of those that it has.

    Args:
      settings: of the run.
      terms: names of the loss terms.
      heads: of what evaluation reports besides the peers.
    """
    for kind, names, taken in (("loss term", terms, _TERMS_TAKEN), ("head", heads, _HEADS_TAKEN)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z]\w*", name) or re.fullmatch(taken, name):
                raise UsageError(
                    f"{settings.method}: its {kind} {name!r} needs another name: a word that stands for nothing else"
                )
    measured = ("accuracy", *(f"accuracy_{name}" for name in ("ensemble", *heads)))
    if (shown := methods.row(settings.method).headline) not in measured:
        raise UsageError(f"{settings.method}: its headline {shown!r} is not measured; {nearest(shown, measured)}")


def check_row(name: str, method: str) -> None:
    """Raises UsageError unless a name is a row's, under which a run is filed, and of this method, which it trains."""
    try:
        of_row = methods.name_of(methods.row(name).method)
    except UsageError as error:
        raise UsageError(f"config.method: {error}") from error
    if of_row != method:
        raise UsageError(
            f"config.method={name!r} is a row of {of_row}, and config.loss.name is {method}; both follow from the "
            f"argument, NAME:dataset,{name}"
        )


def _check_sizes(settings: Settings) -> None:
    counts = facts(settings).counts
    images = data.how_many("config.train_examples", settings.train_examples, counts["train"], settings.dataset)
    data.how_many("config.test_examples", settings.test_examples, counts["test"], settings.dataset)
    if settings.batch_size > images:
        raise UsageError(f"config.batch_size={settings.batch_size} is more than the {images} images")
    if settings.epochs * (images // settings.batch_size) >= LARGEST:
        raise UsageError(f"config.epochs={settings.epochs}: more steps than an int32 can count; give fewer")
    for field in ("held_out_examples", "validation_examples"):
        images -= getattr(settings, field) or 0
        if images < settings.batch_size:
            raise UsageError(f"config.{field}={getattr(settings, field)} leaves no batch of the training images")


def _check_networks(settings: Settings) -> None:
    names = settings.backbones
    alike = len(set(names)) == 1
    if len(names) > MOST_PEERS:
        raise UsageError(f"config.peers names {len(names)} networks; at most {MOST_PEERS} are trained together")
    if settings.mapping == VMAP and not alike:
        raise UsageError(
            "config.mapping='vmap' takes peers of one architecture; use unroll, or shard on several devices"
        )
    if settings.share_trunk and not alike:
        raise UsageError("config.share_trunk=True takes networks of one architecture; choose config.peers alike")
    if settings.mapping == SHARD and settings.devices == 1:
        raise UsageError("config.mapping='shard' takes several devices: --config.devices=N, or 0 for all, be it one")
    if settings.bn == "local" and settings.devices == 1:
        raise UsageError("config.bn='local' is of several devices: --config.devices=N, or 0 for all; leave it out")
    if settings.share_trunk and settings.mapping != UNROLL:
        raise UsageError("config.share_trunk=True needs config.mapping='unroll'")
    # That of `backbone` too, at which nothing looks beside peers: a misprint is one there as well.
    for name in (*names, settings.backbone.name):
        if not own_code.is_well_named(name) and name not in backbones.names():
            field = "peers" if settings.peers and name in names else "backbone.name"
            raise UsageError(
                f"config.{field}: no backbone {name!r}; {nearest(name, backbones.names())}, or my_pkg.nets:make"
            )
