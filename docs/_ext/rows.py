"""The directive `{rows} NAME ...`: what rows of the tables are, from the program itself."""

import dataclasses
from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from cutnmix_jax import methods
from cutnmix_jax.method import Row
from cutnmix_jax.settings import listing


class Rows(SphinxDirective):
    """Two tables: what each row has, and the options of their method."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        rows = {name: methods.row(name) for name in self.arguments[0].split()}
        text = [*_of_rows(rows), "", *_of_options(rows)]
        return self.parse_text_to_nodes("\n".join(text))


def _of_rows(rows: dict[str, Row]) -> Iterable[str]:
    yield "| row | networks | images | mixed by | weights of the terms | in the tables |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        weights = ", ".join(f"`{term}` {weight:g}" for term, weight in row.weights.items())
        rising = f"; rising: {', '.join(f'`{term}`' for term in row.ramp_up)}" if row.ramp_up else ""
        networks = f"{row.num_peers}, one trunk" if row.share_trunk else f"{row.num_peers}"
        images = "own view" if row.views == "per_peer" else "the same for all" if row.num_peers > 1 else "its own"
        if len(row.method.views) > 1:
            images = "its own and another of its class" if row.method.views[1].same_class else "two views of each"
        yield f"| `{name}` | {networks} | {images} | {row.mix} | {weights}{rising} | `test/{row.headline}` |"


def _of_options(rows: dict[str, Row]) -> Iterable[str]:
    method = next(iter(rows.values())).method
    options = listing.of_methods().get(methods.name_of(method), [])
    values = {name: dataclasses.asdict(row.method) for name, row in rows.items()}
    yield "| term or option | default | what it is |"
    yield "|---|---|---|"
    for term, meaning in method.meanings.items():
        yield f"| `train/{term}` | | {meaning} |"
    for option in options:
        own = {name: str(of[option.path.removeprefix("loss.")]).lower() for name, of in values.items()}
        default = f"`{next(iter(own.values()))}`"
        if len(set(own.values())) > 1:
            default = ", ".join(f"`{value}` (`{name}`)" for name, value in own.items())
        yield f"| `--config.{option.path}` | {default} | {option.reason} |"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("rows", Rows)
    return {"parallel_read_safe": True}
