"""LoRA-FAIR (arXiv 2411.14961): averaged LoRA whose B the server refines.

A and B are averaged, and the server adds to the mean B what brings A (B + D)
nearer to the mean of the products W = sum p_k A_k B_k:

  D = argmin ||W - A (B + D)||_F^2 + pull ||D||_F^2,

a target and block at a time. Clients go on from A and B + D, so that nothing
is restarted and no more is sent than by plain averaging.

The paper compares W and A (B + D) by their cosine, and takes gradient steps.
The squared distance is ours: its minimum is known, D = (A'A + pull I)^-1 A'(W -
A B), of which factors suffice: no matrix is larger than K R x R or a factor.
"""

from __future__ import annotations

from fedms_jax.adapters import lora_products
from fedms_jax.algorithms import fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm, Received
from fedms_jax.core.types import Tree
from fedms_jax.server.averaged import (
  Aggregator,
  as_trained,
  averaged,
)
from fedms_jax.server.measures import RESIDUAL

REFINED = 'refined_residual'


def lora_fair(
  setting: Setting, pull: float, *, adapter: Tree | None = None
) -> Algorithm:
  """LoRA-FAIR on LoRA and head, of which the head is averaged.

  pull: lambda, of D to zero; more than 0. The metrics of a round have, beside
  what plain averages miss of the mean product, 'refined_residual', what the
  refined ones do; both are Frobenius norms, scaled as the model is.
  """

  def shares(received: Received):
    return lora_products.shares(received.cover['blocks'])

  def merge(before, received: Received) -> Tree:
    del before
    update, cover = received.update, received.cover
    blocks = lora_products.refined(update['blocks'], shares(received), pull)
    share = lora_products.shares(cover['head'])
    return {'blocks': blocks, 'head': lora_products.mean(update['head'], share)}

  def measure(before, received: Received):
    del before
    factors, share = received.update['blocks'], shares(received)
    new = lora_products.refined(factors, share, pull)
    found = {
      RESIDUAL: lora_products.residual(factors, share),
      REFINED: lora_products.residual(factors, share, new),
    }
    return {name: setting.lora.scale * x for name, x in found.items()}

  aggregator = Aggregator(as_trained, 'stack', merge, measure)
  server = averaged(aggregator, setting.outer)
  plain = fedms.global_stage(setting, adapter=adapter)
  return plain._replace(name='lora_fair', server=server)
