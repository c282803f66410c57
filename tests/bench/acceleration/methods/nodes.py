"""The operators of Dogra & Redman: one for every node of the network, ``U = F′ pinv(F)``, prediction ``U^T w``."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from acceleration.methods.running import Beside, Start
from acceleration.methods.trying import Tester
from acceleration.methods.weights import Tensors
from koopcast.blocks import StridedView
from koopcast.hook.units import Units, unit_specs
from koopcast.partition import plan_blocks
from koopcast.wire import TensorSpec

__all__ = ["node_indices", "nodes", "predict_nodes"]

_WINDOW: Final = 50
"""Snapshots, one every step, and steps predicted from the last of them."""


def node_indices(model: nn.Module) -> list[Tensor]:
    """int64 (nodes, size) for each kind of node: where its elements lie in one vector of the trained weights.

    A node is a unit's row of weights with its bias; a tensor without units (BatchNorm's) is one node.
    """
    units = unit_specs(model)
    specs = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            its = units.get(name, Units())
            specs[name] = TensorSpec("float32", tuple(parameter.shape), its.node_of, its.node_axis)
    plan = plan_blocks(specs, "node")
    numbers = torch.arange(plan.elements)
    found = []
    for group in plan.groups:
        parts = []
        for part in group.parts:
            if isinstance(part, StridedView):
                shape, strides = (
                    part.block_shape + part.element_shape,
                    part.block_strides + part.element_strides,
                )
                parts.append(torch.as_strided(numbers, shape, strides, part.offset).reshape(group.count, -1))
            else:
                parts.append(torch.stack([numbers[begin : begin + part.elements] for begin in part.starts]))
        found.append(torch.cat(parts, dim=1))
    return found


def predict_nodes(snapshots: Tensor, indices: list[Tensor], steps: int) -> Tensor:
    """Weights (n) so many steps after the last of (snapshots, n), float64; not finite where an operator overflows.

    F holds a node's snapshots but the last as columns, F′ those but the first. The pseudo-inverse cuts singular values
    at max(shape) · eps of the largest one. Of a node longer than the window F = Q R, pinv(F) = pinv(R) Qᵀ, and
    ``U^T = F′ (pinv(F) F′)^(T-1) pinv(F)``: the same numbers without the large matrix.
    """
    states = snapshots.double()
    predicted = states[-1].clone()
    for nodes_of_one_size in indices:
        block = states[:, nodes_of_one_size].permute(1, 2, 0)  # (nodes, size, snapshots)
        before, after, last = block[..., :-1], block[..., 1:], block[..., -1:]
        cut = max(before.shape[-2:]) * torch.finfo(torch.float64).eps
        if before.shape[-2] <= before.shape[-1]:
            operator = after @ torch.linalg.pinv(before, rtol=cut)
            moved = torch.linalg.matrix_power(operator, steps) @ last
        else:
            orthogonal, triangular = torch.linalg.qr(before)
            inverse = torch.linalg.pinv(triangular, rtol=cut)
            small = inverse @ (orthogonal.mT @ after)
            moved = after @ (torch.linalg.matrix_power(small, steps - 1) @ (inverse @ (orthogonal.mT @ last)))
        predicted[nodes_of_one_size] = moved.squeeze(-1)
    return predicted


class _NodeOperators(Beside):
    def __init__(self, start: Start) -> None:
        self._weights = Tensors.trained(start.problem.model)
        self._indices = node_indices(start.problem.model)
        self._tester = Tester(start)
        self._snapshots: list[Tensor] = []
        self._steps = 0
        self._jumps: list[list[float]] = []

    def after_step(self) -> float:
        self._steps += 1
        self._snapshots.append(self._weights.flat())
        if len(self._snapshots) < _WINDOW:
            return 0.0
        spent = self._tester.counted
        displacement = self._displacement(torch.stack(self._snapshots))
        self._snapshots.clear()
        if displacement is not None:
            self._tester.move(displacement)
        counted = self._steps + self._tester.counted
        self._jumps.append([counted, int(displacement is not None), _WINDOW])
        return self._tester.counted - spent

    def facts(self) -> dict[str, Any]:
        return {"jumps": self._jumps, "on_jump_evaluations": self._tester.adaptations}

    def _displacement(self, snapshots: Tensor) -> Tensor | None:
        """None where the operators overflow."""
        if not snapshots.isfinite().all():
            return None
        try:
            predicted = predict_nodes(snapshots, self._indices, _WINDOW).to(snapshots.dtype)
        except RuntimeError:  # torch's LinAlgError is one
            return None
        return predicted - snapshots[-1] if predicted.isfinite().all() else None


def nodes(start: Start) -> _NodeOperators:
    """The paper's node operators: Dogra & Redman, NeurIPS 2020 (arXiv 2006.02361), section 3, in float64.

    The weights themselves, every step, nothing truncated, no ridge, eigenvalues as they come. 50 steps predict the next
    50, again and again, each window filled after the last jump; no probe. A prediction that is not finite is not used.
    BatchNorm's statistics are computed anew, and that is counted.
    """
    return _NodeOperators(start)
