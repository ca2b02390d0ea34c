"""Which points a grid has, and what they are called."""

import pytest

from fedms_jax.launch import grid


@pytest.mark.parametrize(
  ('text', 'name', 'values'),
  [
    ('seed=3', 'seed', ['3']),
    ('seed=0..3', 'seed', ['0', '1', '2', '3']),
    ('seed=0..1,7', 'seed', ['0', '1', '7']),
    ('--lora.rank=2,4', 'lora.rank', ['2', '4']),
    ('schedule=dense,fixed', 'schedule.name', ['dense', 'fixed']),
    ('lora.targets=a,b;c', 'lora.targets', ['a,b', 'c']),
    ('data.source=../x', 'data.source', ['../x']),
  ],
)
def test_an_axis(text, name, values):
  assert grid.axis(text) == (name, values)


def test_all_combinations_the_first_axis_slowest():
  found = grid.points(['seed=0..1', 'lora.rank=2,4'], [])
  assert list(found) == [
    'seed=0,lora.rank=2',
    'seed=0,lora.rank=4',
    'seed=1,lora.rank=2',
    'seed=1,lora.rank=4',
  ]
  assert found['seed=1,lora.rank=2'] == {'seed': '1', 'lora.rank': '2'}


def test_the_same_value_gives_the_same_folder():
  one, two = (
    grid.points([f'partition.alpha={value}'], []) for value in ('1', '1.00')
  )
  assert one == two
  assert list(one) == ['partition.alpha=1.0']


def test_names_can_be_folders_anywhere():
  found = grid.points(['lora.targets=attn/q,attn/v;attn/q'], [])
  assert list(found) == ['lora.targets=attn_q_attn_v', 'lora.targets=attn_q']


def test_no_grid_is_no_sweep():
  with pytest.raises(ValueError, match='--grid'):
    grid.points([], [])


@pytest.mark.parametrize(
  ('grids', 'words'),
  [
    (['seed'], 'name=value'),
    (['seed='], 'name=value'),
    (['seed=1,,2'], 'name=value'),
    (['seed=1,1'], 'twice'),
    (['seed=3..1'], '1..3'),
    (['seed=1', 'seed=2'], 'twice'),
    (['workdir=a,b'], 'cannot vary'),
    (['lora.rnk=1'], '--lora.rank'),
    (['lora.rank=0'], 'at least 1'),
    (['lora.targets=attn/q;attn_q'], 'two points'),
    (['partition.alpha=1,1.0'], 'two points'),
    ([f'data.source={"a" * 300}'], 'too long'),
  ],
)
def test_user_errors(grids, words):
  with pytest.raises(ValueError, match=words):
    grid.points(grids, [])


def test_values_get_their_own_types():
  pairs = {'seed': '1', 'partition.alpha': '1.0', 'progress': 'false'}
  typed = [grid.typed(name, value) for name, value in pairs.items()]
  assert [type(value) for value in typed] == [int, float, bool]
  assert typed == [1, 1.0, False]
