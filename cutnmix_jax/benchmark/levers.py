"""What of the settings is changed for `--suite=gpu`, one at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Changed(NamedTuple):
    """A network, and what is not as it is by default."""

    network: str
    fields: dict[str, Any]
    environment: dict[str, str] = {}
    seeds: int = 1  # whose networks one program trains


_GRAPHS = "--xla_gpu_enable_command_buffer=+CONVOLUTION"
# Which kernels are launched together, as CUDA graphs; where there is no flag, XLA's choice, in which there are no
# convolutions.
GRAPHS = {
    "": "",
    "graphs with convolutions": _GRAPHS,
    "graphs with loops": f"{_GRAPHS},+WHILE",
    "concurrent graphs": f"{_GRAPHS} --xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
}
# Of one narrow and one deep network: if 8 peers cost under 2.5 times what 2 do, networks run side by side.
GRAPH_NETWORKS, PEERS = ("resnet32", "resnet110"), (2, 4, 8)
SEEDS = 2, 3, 4
SETTINGS: dict[str, dict[str, Any]] = {
    "vmap": {"mapping": "vmap"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, vmap": {"precision": "bfloat16", "mapping": "vmap"},
    "1 step per call": {"steps_per_call": 1},
    "float32": {"precision": "float32"},
    "batch 256": {"batch_size": 256},
}
SETTINGS_NETWORK = "resnet32"


def of(networks: Sequence[str]) -> dict[str, Changed]:
    """The programs of all levers.

    Args:
      networks: which are measured.

    Returns:
      What a program is called -> what is changed; what compiles longest is last.
    """
    programs: dict[str, Changed] = {}
    if SETTINGS_NETWORK in networks:
        for label, fields in SETTINGS.items():
            programs[f"{SETTINGS_NETWORK}, {label}"] = Changed(SETTINGS_NETWORK, fields)
    for name in GRAPH_NETWORKS:
        for peers in PEERS if name in networks else ():
            for label, flags in GRAPHS.items():
                if peers == 2 and not flags:
                    continue  # it is measured beside PyTorch
                called = ", ".join(filter(None, (name, label, "" if peers == 2 else f"{peers} peers")))
                fields = {} if peers == 2 else {"num_peers": peers}
                programs[called] = Changed(name, fields, {"XLA_FLAGS": flags} if flags else {})
        for seeds in SEEDS if name in networks else ():
            programs[f"{name}, {seeds} seeds"] = Changed(name, {}, seeds=seeds)
    return programs
