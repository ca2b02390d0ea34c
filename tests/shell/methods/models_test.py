"""What methods give to other programs is what they predict with."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.adapters.bottleneck import Bottleneck
from fedms_jax.core import activation, reduction
from fedms_jax.models import pretrained
from fedms_jax.models.family import Model
from fedms_jax.shell import config, methods
from fedms_jax.shell.methods import prompts
from tests import world
from tests.algorithms import clip_world

BATCH = 8
BOTTLENECK = Bottleneck(16, ('mlp/down',))


def stages(name, model, flags):
  flat = {
    'algorithm.name': name,
    'lora.targets': ','.join(world.TARGETS),
    'lora.rank': 2,
    'lora.alpha': 4.0,
    'prompt.length': 3,
    'partition.num_clients': 6,
    'pfedmoap.width': 4,
    'pfedmoap.heads': 2,
    'pfedmma.blocks': 2,
    'pfedmma.width': 3,
    **flags,
  }
  return methods.stages(config.from_values(flat), model, world.CLASSES)


def moved(roles, key):
  """The roles with noise in all that methods may change."""

  def noisy(path, x):
    name = jax.tree_util.keystr(path)
    if 'ticket' in name or 'owners' in name:
      return jnp.zeros_like(x)  # somebody
    if not jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating):
      return x
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return x + 0.3 * jax.random.normal(own, jnp.shape(x))

  changed = ('global', 'delta_blocks')
  kept = {k: x for k, x in roles.frozen.items() if k not in changed}
  parts = roles._replace(
    frozen={k: x for k, x in roles.frozen.items() if k in changed}
  )
  found = jax.tree_util.tree_map_with_path(noisy, parts)
  return found._replace(frozen=kept | found.frozen)


def last(found, start):
  """(algorithm, roles) of the last stage, when everything has moved."""

  @jax.jit
  def trained(roles):
    for number, stage in enumerate(found):
      roles = stage.algorithm.begin(jax.random.key(number), roles)
      roles = moved(roles, jax.random.key(number + 10))
    return roles

  algorithm = found[-1].algorithm
  return algorithm, reduction.begin(algorithm, trained(start), 0)[0]


def batch():
  images = jnp.asarray(world.columns()['inputs'][:BATCH])
  labels = jnp.asarray(world.columns()['labels'][:BATCH])
  return {'inputs': images, 'labels': labels, 'mask': jnp.ones(BATCH, bool)}


def predictor(algorithm):
  """roles -> logits by model."""

  @jax.jit
  def logits(roles):
    rows = batch()
    bare = roles._replace(personal={})
    rows |= algorithm.columns(bare, rows, world.DENSE)
    return algorithm.predict(roles, rows, world.DENSE).logits

  return logits


@jax.jit
def whole(roles, parts):
  """Logits of the base with the parts in it, without any method."""
  backbone = world.backbone()
  base = parts.get('base') or roles.frozen['base']
  if 'levels' in parts:
    each = [
      whole(roles, jax.tree.map(lambda x, n=n: x[n], parts['levels']))
      for n in range(len(parts['kept']))
    ]
    return sum(k * x for k, x in zip(parts['kept'], each, strict=True))
  if 'bottleneck' in parts:
    backbone = backbone.adapted(BOTTLENECK)
    spans = activation.prefix(
      base['blocks'], parts['bottleneck'], backbone.blocks
    )
    x = backbone.run(spans, backbone.embed(base, batch()['inputs']), None)
    # Where heads are personal, the shared model has none of its own.
    head = parts.get('head', roles.personal.get('head'))
    return backbone.logits(base, head, backbone.features(base, x, None))
  if 'blocks' in parts:
    merged = lora.merge(base['blocks'], parts['blocks'], world.LORA.scale)
    base = base | {'blocks': merged}
  x = pretrained.encode(backbone, base, batch()['inputs'])
  if 'feature_length' in parts:
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    x = parts['feature_length'] * x / length
  return backbone.logits(base, parts['head'], x)


FLAGS = [('fedms', {'fedms.upload_blocks': 0.5}),
         ('fedms', {'gate.scope': 'local'})]  # fmt: skip
# What these train is beside the model, and no part of it.
BESIDE = {*prompts.STAGES, 'blackvip', 'prefix'}
# These train a prompt, or LoRA where asked.
LORA = {
  name: {f'{name}.trains': 'lora'}
  for name in ('mezo', 'fedkseed', 'bbt', 'fedbpt')
} | {'fedkseed': {'fedkseed.trains': 'lora', 'fedkseed.seeds': 8}}
PLAIN = [
  (name, LORA.get(name, {})) for name in methods.STAGES if name not in BESIDE
]


@pytest.mark.parametrize(('name', 'flags'), [*PLAIN, *FLAGS])
def test_a_merged_model_predicts_what_the_method_does(name, flags):
  model = Model(world.backbone(), {})
  algorithm, roles = last(stages(name, model, flags), world.start())
  wanted, models = predictor(algorithm)(roles), algorithm.models(roles)
  assert models.keys() == wanted.keys() & {'global', 'local'}
  for key, parts in models.items():
    np.testing.assert_allclose(
      whole(roles, parts), wanted[key], rtol=2e-4, atol=2e-4
    )
    assert np.ptp(np.asarray(wanted[key])) > 0.1


@pytest.mark.parametrize('name', prompts.STAGES)
def test_a_client_s_own_parts_may_be_everybody_s(name):
  """Methods beside a frozen CLIP: what is called local, put in the place of
  what is shared, predicts as the shared model what the local one did."""
  flags = {'model.name': 'a/clip', 'model.head': 'zero_shot'}
  found = stages(name, clip_world.model(), flags)
  algorithm, roles = last(found, clip_world.start())
  predicted = predictor(algorithm)
  models, wanted = algorithm.models(roles), predicted(roles)
  assert models.keys() == wanted.keys() & {'global', 'local'}
  shared = roles.shared | {
    key: x for key, x in models.get('global', {}).items() if key in roles.shared
  }
  same = predicted(roles._replace(shared=shared))
  np.testing.assert_array_equal(same[served(name)], wanted[served(name)])
  if 'local' in models:
    own = {k: x for k, x in models['local'].items() if k in roles.shared}
    if name in OWN:  # what is personal has its own place
      swapped = put(roles, models['local'])
      np.testing.assert_array_equal(
        predicted(swapped)['local'], wanted['local']
      )
      return
    assert own
    swapped = roles._replace(shared=roles.shared | own)
    np.testing.assert_allclose(
      predicted(swapped)['global'], wanted['local'], rtol=1e-5
    )


# Methods whose own parts are of another kind than what is shared.
OWN = {'pfedprompt', 'pfedmma'}


def served(name):
  return 'local' if name == 'pfedmma' else 'global'


def put(roles, parts):
  """Fresh roles with the parts in their places."""
  zeros = jax.tree.map(jnp.zeros_like, (roles.shared, roles.personal))
  shared, own = (
    {k: parts.get(k, x) for k, x in role.items()} for role in zeros
  )
  assert not set(parts) - set(shared) - set(own)
  return roles._replace(shared=shared, personal=own)
