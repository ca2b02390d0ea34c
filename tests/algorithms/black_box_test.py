"""Methods that ask for losses alone: what they learn, send and never take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.algorithms import black_box, fedms, soft_prompts, visual_prompt
from fedms_jax.algorithms.black_box import Search, Seeds
from fedms_jax.core import cma, columns, zeroth
from fedms_jax.core.contract import Context, Moment, Received, Start
from fedms_jax.core.types import Roles
from fedms_jax.core.zeroth import Estimator
from fedms_jax.server import ranked
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import cohort

LENGTH, SEEDS = 2, 7
SLOWLY = optax.sgd(0.02)  # an estimate is longer than its gradient
SEARCH = Search(dimension=5, population=4, sigma=0.5, scale=10.0)


def prompt(setting):
  form = soft_prompts.of_inputs(setting, LENGTH)
  return soft_prompts.promptfl(setting, form)


def pixels(setting):
  return visual_prompt.prompted(
    setting, visual_prompt.of_pixels(setting, 2, 0.3)
  )


def seeds(setting):
  choice = Seeds(SEEDS, step=0.1, rate=0.05)
  return black_box.fedkseed(setting, prompt, choice)


def searched(server, make=prompt):
  choice = SEARCH._replace(server=server)
  return lambda setting: black_box.evolved(setting, make, choice, 'fedbpt')


def estimated(make, directions=1):
  how = Estimator('gaussian', 0.1, directions)
  return lambda setting: black_box.mezo(setting, make, how)


MAKERS = {
  'mezo': estimated(prompt),
  'mezo of LoRA': estimated(fedms.global_stage),
  'blackvip': estimated(pixels, 3),
  'fedkseed': seeds,
  'bbt': searched('none'),
  'average': searched('average'),
  'average of LoRA': searched('average', fedms.global_stage),
  'rank': searched('rank'),
}


@functools.cache
def method(name):
  """(algorithm, roles at the first round)."""
  algorithm = MAKERS[name](world.setting(SLOWLY))
  return algorithm, jax.jit(algorithm.begin)(jax.random.key(2), world.start())


@jax.custom_jvp
def _sealed(x):
  return x


@_sealed.defjvp
def _taken(primals, tangents):
  raise AssertionError('a derivative of the model was taken')


def sealed_setting():
  """Of a model that has no derivative."""
  model = world.backbone()

  def run(*args, **kwargs):
    return _sealed(model.run(*args, **kwargs))

  return world.setting()._replace(model=model._replace(run=run))


@pytest.mark.parametrize('name', MAKERS)
def test_no_derivative_of_the_model_is_taken(name):
  algorithm = MAKERS[name](sealed_setting())
  roles = jax.eval_shape(algorithm.begin, jax.random.key(2), world.start())
  assert jax.tree.leaves(stepped(algorithm, roles))


def stepped(algorithm, roles):
  """Shapes after a step, for which its derivatives are traced."""

  def step(roles, table):
    start = Start(roles, world.DENSE)
    batch = columns.take(table, jnp.arange(4))
    batch = columns.complete(algorithm, roles, batch, world.DENSE)
    carry = algorithm.update.begin(start)
    return algorithm.update.step(carry, start, batch, jax.random.key(0))

  return jax.eval_shape(step, roles, world.table())


def test_such_a_model_cannot_be_trained_by_gradients():
  algorithm = prompt(sealed_setting())
  roles = jax.eval_shape(algorithm.begin, jax.random.key(2), world.start())
  with pytest.raises(AssertionError, match='derivative'):
    stepped(algorithm, roles)


@pytest.mark.parametrize(
  ('name', 'asked'),
  [('mezo', 2), ('blackvip', 6), ('fedkseed', 2), ('bbt', 4), ('rank', 4)],
)
def test_the_ledger_counts_what_is_asked_and_no_backward_pass(name, asked):
  algorithm, roles = method(name)
  dense = (True,) * world.BLOCKS
  shown = {'clients': 1, 'newcomers': 0, 'cohort': 1, 'derived': 0}

  def spent(algorithm, roles):
    meter = Meter(algorithm, roles, batch=4, slots=0)
    return meter.group(
      world.DENSE, dense, examples=10, steps=2, scope='run', **shown
    )

  one = spent(algorithm, roles)
  assert one.queries == 10 * asked
  cost = world.backbone().cost
  forward = world.BLOCKS * cost.block + cost.head
  # Above the prefix each question is one pass forward.
  stem = cost.stem
  np.testing.assert_allclose(
    one.client_flops, 10 * (stem + asked * forward), rtol=1e-6
  )
  plain = prompt(world.setting())
  start = jax.jit(plain.begin)(jax.random.key(2), world.start())
  assert spent(plain, start).queries == 0


def test_what_passes_is_as_long_as_the_code_whatever_the_model():
  def sizes(name):
    algorithm, roles = method(name)
    meter = Meter(algorithm, roles, batch=4, slots=0)
    return meter.traffic(world.DENSE, (True,) * world.BLOCKS, 3)

  n = SEARCH.dimension
  assert sizes('fedkseed') == (4 * SEEDS, 4 * SEEDS)
  searching = 4 * (n * n + 3 * n + 2)
  assert sizes('average') == (searching, searching)
  assert sizes('average of LoRA') == sizes('rank') == sizes('average')
  assert sizes('bbt') == (0, 0)


def parts(algorithm, roles):
  (found,) = algorithm.models(roles).values()
  return found


@pytest.mark.parametrize('name', ['fedkseed', 'average', 'rank', 'bbt'])
def test_a_code_of_zeros_is_what_the_method_begins_with(name):
  algorithm, roles = method(name)
  usual = prompt(world.setting())
  begun = jax.jit(usual.begin)(jax.random.key(2), world.start())
  world.close(parts(algorithm, roles), begun.shared, atol=1e-7)


def test_seeds_and_scalars_rebuild_what_each_client_had():
  """A client's steps, replayed by hand from the numbers that it sends."""
  algorithm, roles = method('fedkseed')
  rows = world.cohort_rows(clients=1, steps=1)
  after, *_ = cohort.one_round(algorithm, roles, rows, world.DENSE)
  code = np.asarray(after.shared['seeds'])
  assert np.count_nonzero(code) == 1
  number = int(np.flatnonzero(code)[0])
  start = roles.frozen['start']
  key = jax.random.fold_in(jax.random.key(0), start[black_box.DRAWS])
  z = zeroth.direction(
    'gaussian', jax.random.fold_in(key, number), start[black_box.WHOLE]
  )
  expected = zeroth.moved(start[black_box.WHOLE], z, code[number])
  world.close(parts(algorithm, after), expected)
  # And along it the loss has the slope that the number says.
  before, there = (
    float(loss(algorithm, r, rows[0, 0])) for r in (roles, after)
  )
  assert there < before


def loss(algorithm, roles, rows):
  batch = columns.take(world.table(), jnp.asarray(rows))
  batch = columns.complete(algorithm, roles, batch, world.DENSE)
  logits = algorithm.predict(roles, batch, world.DENSE).logits
  values, weights = world.TASK.loss(logits[algorithm.served], batch)
  return jnp.sum(values * weights) / jnp.sum(weights)


def test_seeds_are_averaged_and_not_added_up():
  """As many equal clients as you like take the same step."""
  algorithm, roles = method('fedkseed')
  rows = world.cohort_rows(clients=1, steps=2)
  alone, *_ = cohort.one_round(algorithm, roles, rows, world.DENSE)
  codes = []
  for weight in (1.0, 5.0):
    after, *_ = cohort.one_round(
      algorithm, roles, rows, world.DENSE,
      weights=np.array([weight], np.float32),
    )  # fmt: skip
    codes.append(after.shared['seeds'])
  world.close(codes[0], codes[1])
  world.close(codes[0], alone.shared['seeds'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mezo', 'mezo of LoRA', 'average', 'rank'])
def test_rounds_of_one_full_batch_lower_the_loss(name):
  algorithm, roles = method(name)
  rows = np.arange(1, 33, dtype=np.int32).reshape(1, 1, 32).repeat(4, axis=1)
  before = float(loss(algorithm, roles, rows[0, 0]))
  memory = None
  for number in range(6):
    done = cohort.one_round(
      algorithm, roles, rows, world.DENSE, key=number, memory=memory
    )
    roles, memory = done.roles, done.memory
  assert float(loss(algorithm, roles, rows[0, 0])) < before - 0.01


def heard(means, fitness, weights, squares=1.0):
  count = len(means)
  search = cma.begin(cma.Shape(2), 1.0) | {'mean': means}
  update = {
    'search': {
      k: x if k == 'mean' else jnp.stack([x] * count) for k, x in search.items()
    }
  }
  told = {
    'fitness': jnp.asarray(fitness),
    'squares': jnp.full(count, squares, jnp.float32),
  }
  return Received(
    update, {'told': told}, {'search': jnp.asarray(weights)}, jnp.ones(count), 0
  )


@jax.jit
def _ranked_step(received):
  server = ranked.ranked(cma.Shape(2), 1)
  roles = Roles({}, {'search': cma.begin(cma.Shape(2), 1.0)}, {})
  memory = server.init(jax.random.key(0), roles)
  return server.step(roles, memory, received, Context(jax.random.key(0)))[:2]


def ranked_step(received):
  roles, memory = _ranked_step(received)
  return roles.shared['search'], memory


def test_all_clients_are_parents_in_the_order_of_what_they_found():
  means = jnp.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
  search, memory = ranked_step(heard(means, [2.0, 1.0, 0.0], [1.0, 1.0, 0.0]))
  raw = np.log(2.5) - np.log([1, 2])
  best, other = raw / raw.sum()  # the third one has sent nothing
  np.testing.assert_allclose(search['mean'], [other, best], rtol=1e-5)
  assert memory['generation'] == 1 and search['generation'] == 0
  quiet, kept = ranked_step(heard(means, [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]))
  world.same(quiet, cma.begin(cma.Shape(2), 1.0))
  assert kept['generation'] == 0


def test_the_step_size_is_multiplied_by_what_the_server_made_of_its_own():
  """Whose size is that of the clients', which cancels in where they end."""
  means = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  small, _ = ranked_step(heard(means, [0.0, 1.0], [1.0, 1.0], 0.01))
  large, _ = ranked_step(heard(means, [0.0, 1.0], [1.0, 1.0], 100.0))
  np.testing.assert_allclose(small['mean'], large['mean'], rtol=1e-5)
  # Seen from larger steps the clients went nowhere.
  assert large['log_sigma'] < 0 < small['log_sigma']


def test_the_gains_of_spsa_are_those_of_blackvip():
  optimizer = visual_prompt.gains(0.5, 1.0, 0.4, 0.9)
  optimizer = optax.with_extra_args_support(optimizer)
  w, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
  expected, momentum = 1.0, 0.0
  for clock, slope in enumerate((2.0, -1.0, 0.5)):
    momentum = 0.9 * momentum + slope
    expected -= 0.5 / (clock + 2) ** 0.4 * (slope + 0.9 * momentum)
    start = Start(None, None, Moment(clock=clock))
    update, state = optimizer.update(jnp.float32(slope), state, start=start)
    w = w + update
    np.testing.assert_allclose(w, expected, rtol=1e-5)


def test_a_visual_prompt_of_zeros_is_the_model_and_no_pixel_leaves_its_range():
  form = visual_prompt.of_pixels(world.setting(), 2, 0.3)
  algorithm, roles = method('blackvip')
  frozen, batch = roles.frozen, columns.take(world.table(), jnp.arange(1, 5))
  plain = form.plain(frozen, batch)
  world.close(form.logits(frozen, roles.shared, batch), plain)
  big = roles.shared | {'pixels': jnp.full((2, 2, 1), 99.0)}
  white = batch | {'inputs': jnp.full_like(batch['inputs'], 255)}
  world.close(
    form.logits(frozen, big, white), form.plain(frozen, white), atol=1e-5
  )
  assert np.abs(form.logits(frozen, big, batch) - plain).max() > 1e-3
  assert algorithm.derived == ()


def test_first_points_are_as_far_as_the_words_are_wide():
  """The standard deviation of A z is alpha times that of the embeddings."""
  whole = {'prompt': jnp.zeros((50, 8)), 'head': jnp.zeros((8, 4))}
  words = 0.7 * jax.random.normal(jax.random.key(0), (90, 8))
  frozen = {'base': {'stem': {'word': words}}}
  choice = Search(dimension=40, sigma=2.0, scale=3.0)
  maps = black_box.subspace(jax.random.key(1), frozen, whole, choice)
  z = choice.sigma * jax.random.normal(jax.random.key(2), (60, 40))
  made = {k: jnp.tensordot(z, a, 1) for k, a in maps.items()}
  np.testing.assert_allclose(made['prompt'].std(), 3 * words.std(), rtol=0.05)
  np.testing.assert_allclose(made['head'].std(), 3 * 0.02, rtol=0.1)


@pytest.mark.slow
def test_equal_clients_with_equal_keys_are_one():
  algorithm, roles = method('average')
  rows = world.cohort_rows(clients=1, steps=2)
  once = cohort.one_round(algorithm, roles, rows, world.DENSE)
  many = world.train(
    algorithm, roles, np.concatenate([rows] * 3), ids=np.zeros(3, np.uint32)
  )[0]
  world.close(many, once.roles.shared)
