"""The tasks that koopcast is judged by, and that `koopcast demo --task` shows."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from koopcast_server.demo.tasks import char_gpt, digits, hamiltonian, image_fit, images, pinn, regression
from koopcast_server.demo.tasks.data import DataMissing
from koopcast_server.demo.tasks.task import Kind, Problem, Task

__all__ = ["TASKS", "DataMissing", "Kind", "Problem", "Task"]

_ALL: Final = (
    hamiltonian.OSCILLATOR,
    hamiltonian.HENON_HEILES,
    pinn.BURGERS,
    pinn.HELMHOLTZ,
    image_fit.IMAGE_FIT,
    regression.FULL,
    digits.MNIST_FULL,
    images.MLP,
    images.CNN,
    char_gpt.CHAR_GPT,
    regression.MINIBATCH,
    images.FINE_TUNING,
)

TASKS: Final[Mapping[str, Task]] = MappingProxyType({task.name: task for task in _ALL})
"""By name, deterministic ones first."""
