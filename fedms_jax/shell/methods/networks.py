"""Methods for networks of a user's own, by the names of the catalog."""

from __future__ import annotations

from collections.abc import Callable

from fedms_jax.algorithms import networks
from fedms_jax.core.contract import Algorithm
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _one(
  make: Callable, *, personal: bool = False, kept: bool = False
) -> Callable[[Builder], list[Stage]]:
  """A method of one stage. make: (builder, setting, form) -> algorithm.
  personal: of the stage's name. kept: clients keep a head of their own."""

  def stages(builder: Builder) -> list[Stage]:
    form = builder.model.network
    assert form is not None
    if kept and not form.head:
      name = builder.config.algorithm.name
      raise ValueError(
        f'--algorithm.name={name} keeps the head personal, and the network '
        f'{form.network.name!r} names none; give it a `Network.head`, a '
        f'pattern of its parameters {", ".join(form.paths)}.'
      )
    if not (form.body or form.head):
      raise ValueError(
        f'nothing of the network {form.network.name!r} trains: it has no '
        'parameters of floating point.'
      )
    merges = builder.config.algorithm.name == 'scaffold'
    made: Algorithm = make(builder, builder.setting(merges=merges), form)
    stage = 'personal' if personal else 'global'
    return [builder.stage(stage, made, builder.rounds, start='dense')]

  return stages


STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  'fedavg': _one(lambda b, s, form: networks.fedavg(s, form)),
  'fedprox': _one(lambda b, s, form: networks.fedprox(s, form, b.own.mu)),
  'scaffold': _one(
    lambda b, s, form: networks.scaffold(
      s, form, b.config.partition.num_clients
    )
  ),
  'local': _one(lambda b, s, form: networks.local(s, form), personal=True),
  'fedper': _one(
    lambda b, s, form: networks.fedper(s, form), personal=True, kept=True
  ),
  'fedrep': _one(
    lambda b, s, form: networks.fedrep(s, form, b.own.head_share),
    personal=True,
    kept=True,
  ),
  'ditto': _one(
    lambda b, s, form: networks.ditto(s, form, b.own.pull), personal=True
  ),
}
