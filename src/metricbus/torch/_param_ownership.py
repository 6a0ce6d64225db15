"""Which parameters of a model belong to which optimizer."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from metricbus.torch._modules import parameter_names, reject_sharded


class OwnedParameters(NamedTuple):
    """The parameters of a model, by name, that belong to one optimizer.

    `total_name` is the name for statistics of all of them together. `ids` are the ids of all
    parameters the optimizer had when this was computed; they show when it is out of date.
    """

    parameters: dict[str, nn.Parameter]
    total_name: str
    ids: tuple[int, ...]


class ParameterOwnership:
    """Assigns a model's parameters to optimizers. Keeps neither alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._owned: weakref.WeakKeyDictionary[Optimizer, OwnedParameters] = (
            weakref.WeakKeyDictionary()
        )
        self._owners = 0

    def of(self, optimizer: Optimizer) -> OwnedParameters | None:
        """Return the optimizer's parameters; recomputed after its parameter groups have changed.

        Returns None if the model has been garbage-collected. Raises `TypeError` if it has been
        sharded in the meantime.
        """
        model = self._model()
        if model is None:
            return None
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        ids = tuple(map(id, own))
        owned = self._owned.get(optimizer)
        if owned is None or owned.ids != ids:
            reject_sharded("watch()", model)
            names = parameter_names(model)
            own_set = set(own)
            parameters = {
                name: parameter for parameter, name in names.items() if parameter in own_set
            }
            if owned and owned.parameters:
                total_name = owned.total_name
            else:
                self._owners += bool(parameters)
                total_name = self._new_total_name(names)
            owned = self._owned[optimizer] = OwnedParameters(parameters, total_name, ids)
        return owned

    def _new_total_name(self, names: dict[nn.Parameter, str]) -> str:
        """Return a name that no other optimizer's total and no parameter has."""
        total_name = "total" if self._owners <= 1 else f"total_{self._owners}"
        while total_name in names.values():
            total_name += "_"
        return total_name
