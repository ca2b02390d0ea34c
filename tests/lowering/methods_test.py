"""The programs of every method of the catalog, as accelerators will get them.

On the toy world of the family's laws; the numbers of a real model change
nothing of what is asked here: whether a program lowers at all, calls nothing
of the host, and has no loop whose length the device alone knows.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedms
from fedms_jax.channel import attacks, compression, discrete, protocol, secure
from fedms_jax.core import columns, reduction, rounds, scoring
from fedms_jax.core.contract import Moment, Work
from fedms_jax.core.private_gradient import private_gradient
from fedms_jax.core.wire import Opening
from fedms_jax.simulation import needs, tangents
from tests import family_test as family
from tests import world
from tests.algorithms import fresh_gate_test
from tests.lowering.accelerators import ACCELERATORS, lowered, pretend
from tests.lowering.lowering_test import loops

KEY = jax.eval_shape(lambda: jax.random.key(0))
# What of the device's libraries a program calls: mostly at the server, on
# matrices as small as LoRA's.
CALLS: dict[str, set[str]] = {
  'flexlora/close': {
    'cusolver_gesvdj_ffi', 'cusolver_geqrf_ffi', 'cusolver_orgqr_ffi',
    'Eigh', 'Qr', 'ProductOfElementaryHouseholderReflectors',
  },
  'lora_fair/close': {
    'cusolver_getrf_ffi', 'cu_lu_pivots_to_permutation', 'LuDecomposition',
  },
  # Once in a round, on the covariance of the features.
  'fgl/close': {'cusolver_syevd_ffi', 'Eigh'},
  'ridge/close': {'cusolver_potrf_ffi'},
  # A full covariance has an eigendecomposition for each generation; a diagonal
  # one (--fedbpt.covariance=diagonal) has none.
  'bbt/step': {'cusolver_syevd_ffi', 'Eigh'},
  'fedbpt/step': {'cusolver_syevd_ffi', 'Eigh'},
  'tangents': {'cusolver_syevd_ffi', 'Eigh'},
}  # fmt: skip
# On a TPU an SVD goes on until it is exact enough.
ITERATE = {('flexlora/close', 'tpu')}
QUICK = ('koala', 'fedvz')  # each has programs like no other's


def shapes(values):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), values
  )


def table(case):
  """Raw columns, and the derived ones of the case's prefix."""
  raw = shapes(family.table())
  shared = shapes(case.roles)._replace(personal=None)
  return raw | columns.shapes(case.algorithm, shared, raw, case.plan)


def programs(case, chunk):
  """name -> (function, arguments) of a round of such clients."""
  algorithm, plan, roles = case.algorithm, case.plan, shapes(case.roles)
  chunk = shapes(chunk)
  state = jax.eval_shape(lambda r: reduction.begin(algorithm, r, 0), roles)[2]
  moment = Moment(rates=shapes(family.RATES))
  work = Work(table(case), KEY, moment, channel=state)
  totals = None
  if algorithm.server.reduction == 'sum':
    totals = reduction.empty_shapes(algorithm, case.roles)
  args = needs.arguments(algorithm, plan, roles, work, totals, chunk)
  found = {}
  for which, given in args._asdict().items():
    function = getattr(rounds, f'{which}_chunk').__wrapped__
    found[which] = functools.partial(function, *given[:3]), given[3:]
  sent = rounds.finish_chunk.program().eval_shape(*args.finish)[0]
  close = functools.partial(reduction.close.__wrapped__, algorithm)
  memory, number = shapes(case.memory), shapes(np.int32(0))
  found['close'] = close, (roles, memory, state, sent, KEY, number)
  look = scoring.Look(algorithm, plan)
  score = functools.partial(scoring.evaluate_chunk.__wrapped__, look)
  rows = jax.ShapeDtypeStruct((family.K, 5), np.int32)
  bare = roles._replace(personal=None)
  found['evaluate'] = score, (bare, work.table, chunk.personal, rows)
  return found


def check(function, args, called: str = '') -> None:
  calls = CALLS.get(called, set())
  for name in ('ampere', 'tpu'):
    with pytest.MonkeyPatch.context() as patch:
      pretend(patch, ACCELERATORS[name])
      text = lowered(function, args, ACCELERATORS[name])
    assert set(re.findall(r'custom_call @([\w$.]+)', text)) <= calls, name
    assert all(loops(text)) != ((called, name) in ITERATE), name


@pytest.mark.parametrize(
  ('name', 'stage'),
  [
    pytest.param(*x, marks=() if x[0] in QUICK else pytest.mark.slow)
    for x in family.CASES
  ],
)
def test_the_programs_of_a_method_lower(name, stage):
  case = family.case(name, stage)
  for which, (function, args) in programs(case, family.clients(case)).items():
    check(function, args, f'{name}/{which}')


@pytest.mark.parametrize(
  'rows', ['holdout', pytest.param('crossfit', marks=pytest.mark.slow)]
)
def test_a_gate_that_is_fitted_lowers(rows):
  algorithm, roles = world.second_stage(fresh_gate_test.choice(rows))
  case = family.Case(algorithm, roles, (), world.TOP)
  chunk = family.clients(case)
  chunk = chunk._replace(fresh=np.repeat(fresh_gate_test.HELD, family.K, 0))
  check(*programs(case, chunk)['finish'])


def test_gradients_of_single_rows_lower():
  setting = world.setting()._replace(gradient=private_gradient(1.0, 0.5, 4))
  algorithm = fedms.global_stage(setting)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  case = family.Case(algorithm, roles, (), family.PLAN)
  check(*programs(case, family.clients(case))['step'])


def wires():
  """Channels by what their programs are like."""
  size = family.K
  plain = protocol.Secure(16, 1.0, 8.0, size, 3)
  noise = discrete.Noise(0.5, size)
  code = compression.Code
  return {
    'masked': secure.secure(plain),
    'noisy': secure.secure(plain._replace(bits=14, noise=noise)),
    **{name: compression.up(code(name, 8, 0.2)) for name in compression.NAMES},
    'down': compression.down(code('rotated', 8)),
    'attack': attacks.attack(attacks.Attack('gaussian', (1,))),
  }


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=() if n == 'masked' else pytest.mark.slow)
    for n in wires()
  ],
)
def test_what_happens_on_the_wire_lowers(name):
  case = family.case('fedavg', 0)
  algorithm = case.algorithm._replace(channel=wires()[name])
  case = case._replace(algorithm=algorithm)
  made = programs(case, family.clients(case))
  check(*made['finish'])
  check(*made['close'])
  wire = algorithm.channel.wire
  if wire.open is None and wire.receive is None:
    return
  roles, state = made['close'][1][0], made['close'][1][2]
  ids = np.arange(family.K, dtype=np.uint32)
  held = state['held'] if 'held' in state else {}
  opening = Opening(shapes(ids), shapes(ids < 9), held)
  function = functools.partial(reduction.opened.__wrapped__, algorithm)
  check(function, (roles, state, opening, KEY))


@pytest.mark.slow
def test_scores_of_blocks_lower():
  case = family.case('fedavg', 0)
  raw = jax.tree.map(lambda x: x[: tangents.ROWS], family.table())
  batch = shapes(raw | {'mask': jnp.ones(tangents.ROWS, bool)})
  score = functools.partial(tangents.eigenvalues.__wrapped__, case.algorithm)
  check(score, (shapes(case.roles), batch), 'tangents')
