"""Which parameters of a model an optimizer has."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from metricbus.torch._modules import parameter_names, refuse_sharded


class Share(NamedTuple):
    """The parameters of a model that one optimizer has, by name, and what all of them are called.

    `found_for` are the ids of the parameters that the optimizer had when this was found out.
    """

    parameters: dict[str, nn.Parameter]
    total: str
    found_for: tuple[int, ...]


class Shares:
    """The shares of all optimizers in one model; keeps neither them nor the model alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._shares: weakref.WeakKeyDictionary[Optimizer, Share] = weakref.WeakKeyDictionary()
        self._totals = 0

    @property
    def are_gone(self) -> bool:
        """Whether the model is no more."""
        return self._model() is None

    def of(self, optimizer: Optimizer) -> Share:
        """What the optimizer has; looked up again when other parameters have been given to it.

        Raises `TypeError` if the model has been sharded meanwhile.
        """
        has = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found_for = tuple(map(id, has))
        share = self._shares.get(optimizer)
        if share is None or share.found_for != found_for:
            names = self._names()
            theirs = set(has)
            parameters = {name: one for one, name in names.items() if one in theirs}
            total = (
                share.total if share and share.parameters else self._next_total(parameters, names)
            )
            share = self._shares[optimizer] = Share(parameters, total, found_for)
        return share

    def _names(self) -> dict[nn.Parameter, str]:
        model = self._model()
        if model is None:
            return {}
        refuse_sharded("watch()", model)
        return parameter_names(model)

    def _next_total(
        self, parameters: dict[str, nn.Parameter], names: dict[nn.Parameter, str]
    ) -> str:
        """A name that neither an optimizer before this one nor a parameter has."""
        self._totals += bool(parameters)
        total = "total" if self._totals <= 1 else f"total_{self._totals}"
        while total in names.values():
            total += "_"
        return total
