"""Sums of products of LoRA refuse what they would broadcast."""

import jax.numpy as jnp
import pytest

from fedms_jax.adapters import lora_products

CLIENTS, BLOCKS, RANK = 3, 2, 4
FACTORS = {
  'attn': {
    'q': {
      'a': jnp.ones((CLIENTS, BLOCKS, 6, RANK)),
      'b': jnp.ones((CLIENTS, BLOCKS, RANK, 5)),
    }
  }
}


@pytest.mark.parametrize(
  'shape', [(CLIENTS, 1), (1, BLOCKS), (CLIENTS,), (BLOCKS, CLIENTS)]
)
def test_a_share_of_other_clients_or_blocks_is_refused(shape):
  share = jnp.ones(shape)
  calls = [
    lora_products.products,
    lora_products.residual,
    lambda factors, share: lora_products.best(factors, share, 2),
  ]
  for call in calls:
    call(FACTORS, jnp.ones((CLIENTS, BLOCKS)))
    with pytest.raises(AssertionError):
      call(FACTORS, share)


def test_factors_without_clients_are_refused():
  one = {'attn': {'q': {k: x[0] for k, x in FACTORS['attn']['q'].items()}}}
  assert lora_products.norms(FACTORS).shape == (CLIENTS, BLOCKS)
  with pytest.raises(AssertionError):
    lora_products.norms(one)
