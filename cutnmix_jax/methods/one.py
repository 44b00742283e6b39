"""ONE, knowledge distillation by on-the-fly native ensemble (Lan et al. 2018): row `one`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import fields, losses
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views

_MOMENTUM, _EPSILON = 0.9, 1e-5  # of the gate's batch norm, as everywhere in the networks


@dataclasses.dataclass(frozen=True)
class ONE(Method):
    """L = sum_b CE_b + CE(z_e) + w(t) sum_b KD(b <- z_e), z_e = sum_b g_b z_b, no gradient through the KD's target.

    The gate g is a softmax over the branches of ReLU(batch norm(linear(the trunk's pooled output))). w rises as
    `Row.ramp_up` says.
    """

    meanings = {
        "ce": _terms.CE,
        "ensemble_ce": "the gated ensemble's own cross-entropy",
        "kd": "the gated ensemble's logits",
    }

    temperature: float = fields.field(3.0, fields.temperature, "tau of the KD; 3 in the original")

    def check(self, setup: Setup) -> None:
        _terms.need_peers(setup, 2)
        _terms.need_same_images(setup)  # the gate weighs the branches' logits of one image
        _terms.need_trunk(setup)

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        assert spec.trunk_size is not None  # as `check` says
        branches = len(spec.feature_sizes)
        norm = {"scale": jnp.ones(branches), "offset": jnp.zeros(branches)}
        params = _terms.linear(key, spec.trunk_size, branches) | norm
        return params, {"mean": jnp.zeros(branches), "var": jnp.ones(branches)}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        raw = scores(params, outputs)
        seen = {"mean": raw.mean(axis=0), "var": raw.var(axis=0)}
        ensemble = gated(params, seen, raw, outputs)
        terms = {
            "ce": _terms.cross_entropy(outputs, targets),
            "ensemble_ce": losses.soft_cross_entropy(ensemble, targets[0]).mean(),
            "kd": _terms.distilled(outputs, [stop_gradient(ensemble)] * len(outputs), self.temperature),
        }
        averages = {name: _MOMENTUM * state[name] + (1 - _MOMENTUM) * stop_gradient(new) for name, new in seen.items()}
        return terms, averages

    def heads(self, params: Tree, state: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
        return {"gated_ensemble": gated(params, state, scores(params, outputs), outputs)}


def scores(params: Tree, outputs: tuple[Outputs, ...]) -> jax.Array:
    """The gate's linear layer on the trunk's pooled output: [n, branches]."""
    return outputs[0].trunk @ params["kernel"] + params["bias"]


def gated(params: Tree, statistics: Tree, raw: jax.Array, outputs: tuple[Outputs, ...]) -> jax.Array:
    """z_e = sum_b g_b z_b: [n, K]."""
    normal = (raw - statistics["mean"]) * jax.lax.rsqrt(statistics["var"] + _EPSILON)
    gate = jax.nn.softmax(jax.nn.relu(normal * params["scale"] + params["offset"]))
    return jnp.einsum("nb,bnk->nk", gate, jnp.stack([out.logits for out in outputs]))


ROWS = {"one": Row(ONE(), {"ce": 1.0, "ensemble_ce": 1.0, "kd": 1.0}, share_trunk=True, ramp_up=("kd",))}
