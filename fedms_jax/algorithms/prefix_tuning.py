"""Federated prefix tuning: trained keys and values in each block, averaged.

P-tuning v2 (arXiv 2110.07602) without its reparametrization, as its authors
advise for classification and MeZO's (arXiv 2305.17333) do for all. A prefix is
stacked over blocks as LoRA is, so any schedule of blocks may activate it.
"""

from __future__ import annotations

from fedms_jax.adapters.prefix import Prefix, turned_on
from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Roles, Tree


def prefix_tuning(setting: Setting, spec: Prefix) -> Algorithm:
  """FedAvg of the prefixes of active blocks, and of the head."""
  setting = setting._replace(lora=spec)

  def begin(key, before: Roles) -> Roles:
    shared = adapted.fresh(setting, key, before, None)
    return Roles({'base': before.frozen['base'], 'start': shared}, shared, {})

  def model(roles: Roles) -> Tree:
    return roles.shared | {'blocks': turned_on(roles.shared['blocks'])}

  return adapted.one_model(
    setting, 'prefix', begin, model, server=adapted.server(setting)
  )
