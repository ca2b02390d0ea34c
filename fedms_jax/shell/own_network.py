"""The network of --model.name, in the shape of the data."""

from __future__ import annotations

from fedms_jax.core.types import Table
from fedms_jax.models import network
from fedms_jax.models.family import Model
from fedms_jax.shell import plugged
from fedms_jax.shell.config import ModelConfig


def model(m: ModelConfig, table: Table) -> Model:
  """The model; what it learns is what the network or the data say.

  Raises:
    ValueError: the network and the data do not fit.
  """
  own = plugged.network(m.name)
  inputs = table.columns['inputs']
  shape, dtype = tuple(inputs.shape[1:]), str(inputs.dtype)
  made = network.form(own, shape, dtype)
  network.check_logits(made, shape, dtype, len(table.output_names))
  task = network.task(own.loss, table.outputs)
  return Model(network.backbone(own, shape, dtype), {}, task=task, network=made)
