"""A training loop of one's own: two NNX networks, optax, and CutnMix with its whole objective (Eq. 8)."""

import jax
import optax
from flax import nnx

import cutnmix_jax


class Net(nnx.Module):
    """A small network; it returns logits [n, K] and the pooled features [n, 16] before its last layer."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.norm(self.conv(images))).mean((1, 2))
        return self.last(features), features


objective = cutnmix_jax.objective_of("cutnmix", num_classes=10, feature_sizes=(16, 16))
optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9, nesterov=True))
graph, params, statistics = nnx.split([Net(10, nnx.Rngs(j)) for j in range(2)], nnx.Param, ...)
teacher, state = objective.init(jax.random.key(2))  # the peer teacher is trained with the networks
weights = {"peers": params, "teacher": teacher}


@jax.jit
def step(weights, statistics, momentum, key, images, targets):
    """One step on what each peer sees of the batch, [2, n, H, W, 3], and the classes' distributions, [n, 10]."""
    mixed = cutnmix_jax.cutnmix(key, images, targets)

    def loss(weights):
        peers = nnx.merge(graph, weights["peers"], statistics, copy=True)
        outputs = [cutnmix_jax.Outputs(*peer(seen)) for peer, seen in zip(peers, mixed.images, strict=True)]
        total, (terms, _) = objective(weights["teacher"], state, outputs, mixed.targets)
        return total, (terms, nnx.split(peers, nnx.Param, ...)[2])

    gradient, (terms, after) = jax.grad(loss, has_aux=True)(weights)
    updates, momentum = optimizer.update(gradient, momentum, weights)
    return optax.apply_updates(weights, updates), after, momentum, terms


if __name__ == "__main__":
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The same for both here; the paper crops and flips for each peer by itself before it mixes.
    images = jax.numpy.stack([digits.images[..., None].repeat(3, -1) / 16] * 2)
    momentum = optimizer.init(weights)
    for t in range(100):
        key = jax.random.fold_in(jax.random.key(0), t)
        rows = jax.random.randint(key, (64,), 0, images.shape[1])
        targets = jax.nn.one_hot(digits.target[rows], 10)
        weights, statistics, momentum, terms = step(weights, statistics, momentum, key, images[:, rows], targets)
    for peer in nnx.merge(graph, weights["peers"], statistics):
        peer.eval()
        print("accuracy", float((peer(images[0])[0].argmax(-1) == digits.target).mean()))
    print({name: [round(float(value), 3) for value in term.reshape(-1)] for name, term in terms.items()})
