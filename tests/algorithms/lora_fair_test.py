"""LoRA-FAIR: the server's B is the best for the mean A."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora, lora_products
from fedms_jax.algorithms import fedms, lora_fair
from fedms_jax.server import measures
from tests import world
from tests.algorithms import cohort
from tests.algorithms.lora_cohort import ROWS, SCALE


def factors(clients=3, rank=2):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {'q': {'a': draw(clients, 2, 8, rank), 'b': draw(clients, 2, rank, 6)}}


SHARE = np.array([[0.2, 0.5], [0.5, 0.5], [0.3, 0.0]], np.float32)


def by_hand(values, pull):
  """B of every block, by least squares with the pull as further rows."""
  a, b = (np.asarray(x, np.float64) for x in lora.pairs(values)['q'])
  exact = np.einsum('kl,klir,klro->lio', SHARE, a, b)
  first, middle = (np.einsum('kl,kl...->l...', SHARE, x) for x in (a, b))
  out = []
  for x, w, m in zip(first, exact, middle, strict=True):
    more = np.sqrt(pull) * np.eye(x.shape[1])
    rows = np.concatenate([w, more @ m])
    out.append(np.linalg.lstsq(np.concatenate([x, more]), rows)[0])
  return first, np.stack(out), exact


@pytest.mark.parametrize('pull', [1e-4, 0.5])
def test_the_refined_b_is_the_least_squares_solution(pull):
  values = factors()
  a, b, exact = by_hand(values, pull)
  found = lora_products.refined(values, SHARE, pull)
  np.testing.assert_allclose(found['q']['a'], a, atol=1e-5)
  np.testing.assert_allclose(found['q']['b'], b, atol=1e-4)
  left = np.linalg.norm(exact - a @ b)
  measured = lora_products.residual(values, SHARE, found)
  np.testing.assert_allclose(measured, left, rtol=1e-4)
  assert left < 0.95 * lora_products.residual(values, SHARE)


def test_a_strong_pull_is_plain_averaging_and_like_clients_need_no_correction():
  values = factors()
  mean = lora_products.mean(values, SHARE)
  world.close(lora_products.refined(values, SHARE, 1e8), mean)
  alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), values)
  world.close(
    lora_products.refined(alike, SHARE, 1e-6), lora_products.mean(alike, SHARE)
  )


def test_a_round_refines_b_and_says_what_is_left():
  algorithm = lora_fair.lora_fair(world.setting(), 1e-3)
  plain = fedms.global_stage(world.setting())
  roles = cohort.begin(algorithm)
  after = cohort.one_round(algorithm, roles, ROWS, world.GAP)
  usual = cohort.one_round(plain, roles, ROWS, world.GAP)
  for role in ('a', 'b'):
    new, old = (
      np.asarray(x.roles.shared['blocks']['attn']['q'][role])
      for x in (after, usual)
    )
    np.testing.assert_allclose(new[1], old[1])  # nobody trained it
    same = np.abs(new[[0, 2]] - old[[0, 2]]).max() < 1e-5
    assert same == (role == 'a')
  world.close(after.roles.shared['head'], usual.roles.shared['head'])
  missed, left = (
    after.measured[name] for name in (measures.RESIDUAL, lora_fair.REFINED)
  )
  np.testing.assert_allclose(
    missed, usual.measured[measures.RESIDUAL], rtol=1e-3
  )
  assert 0 < left < 0.9 * missed and SCALE == 2
