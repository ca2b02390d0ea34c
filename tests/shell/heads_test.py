"""Heads of other answers than classes, from flags to a world."""

import jax
import numpy as np
import pytest

from fedms_jax.shell import flags, foundation, world
from fedms_jax.shell.commands import export

SMALL = (
  'fedms', '--data.max_rows=300', '--partition.num_clients=4',
  '--partition.unseen_clients=1', '--cohort.size=2', '--model.blocks=2',
  '--model.width=16', '--model.heads=2',
)  # fmt: skip


def built(*words):
  return world.world(flags.parse([*SMALL, *words]))


@pytest.mark.parametrize(
  ('head', 'outputs', 'kind'),
  [('regression', 1, 'values'), ('ordinal', 9, 'levels')],
)
def test_the_head_is_as_wide_as_its_answers(head, outputs, kind):
  made = built(f'--model.head={head}')
  shape = jax.eval_shape(made.model.backbone.init_head, jax.random.key(0))
  assert shape['kernel'].shape == (16, outputs)
  assert {stage.algorithm.task.kind for stage in made.stages} == {kind}
  assert made.data.table.outputs.kind == kind
  # What pre-training and rows are dealt by is there as well.
  assert set(made.data.table.columns) >= {'inputs', 'labels'}


def test_tags_come_from_data_of_ones_own(tmp_path):
  rng = np.random.default_rng(0)
  tags = (rng.random((120, 3)) < 0.4).astype(np.uint8)
  images = rng.integers(0, 255, (120, 8, 8)).astype(np.uint8)
  np.savez(tmp_path / 'x.npz', images=images, labels=tags)
  made = built(
    f'--data.source={tmp_path}/x.npz', '--model.head=multi_label',
    '--algorithm.name=ditto',
  )  # fmt: skip
  columns = made.data.table.columns
  assert columns['tags'].shape == (120, 3)
  # Rows were sorted by client, and their tags went with them.
  found = {(x.tobytes(), t.tobytes()) for x, t in zip(
    columns['inputs'], columns['tags'], strict=True)}  # fmt: skip
  assert found == {
    (x[..., None].tobytes(), t.tobytes())
    for x, t in zip(images, tags, strict=True)
  }


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (('--model.head=regression', '--gate.mix=probabilities'), 'gate.mix'),
    (('--model.head=ordinal', '--gate.mix=probabilities'), 'gate.mix'),
    (('--model.head=multi_label',), 'lists of tags'),
    (('--model.head=zero_shot',), 'allowed: classification'),
    (('--model.head=regression', '--data.novel_fraction=0.5'), 'no classes'),
    (('--model.head=regression', '--eval.metrics=f1'), 'rmse'),
    (('--model.head=ordinal', '--algorithm.name=fedpgp'), 'fedpgp'),
  ],
)
def test_what_asks_for_classes_is_refused(words, said):
  with pytest.raises(ValueError, match=said):
    built(*words)


def test_a_head_that_leaves_gives_numbers_as_the_data_has_them():
  facts = foundation.Facts(('x', 'y'), 0, (5.0, -1.0), (3.0, 0.5))
  rng = np.random.default_rng(0)
  head = {'kernel': rng.normal(size=(4, 2)), 'bias': rng.normal(size=2)}
  x = rng.normal(size=(6, 4))
  inside = x @ head['kernel'] + head['bias']
  made = export._in_units({'head': head, 'blocks': {}}, facts)['head']
  np.testing.assert_allclose(
    x @ made['kernel'] + made['bias'],
    np.array(facts.center) + np.array(facts.spread) * inside,
    rtol=1e-5,
  )
  plain = {'head': head}
  assert export._in_units(plain, foundation.Facts(('a', 'b'), 0)) is plain
  with pytest.raises(ValueError, match='no bias'):
    export._in_units({'head': {'kernel': head['kernel']}}, facts)
