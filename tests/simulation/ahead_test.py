"""What comes next is compiled early, and changes no number."""

import functools
import threading

import jax
import pytest

from fedms_jax import schedules
from fedms_jax.channel import secure
from fedms_jax.core.types import Plan
from fedms_jax.schedules import orders, triggers
from fedms_jax.simulation import ahead, coming, evaluation
from fedms_jax.systems import devices, selection
from fedms_jax.systems.buffered import Buffered, buffered
from tests import world

TOP, TWO, WHOLE = (False, False, True), (False, True, True), (True,) * 3


def schedule(trigger, delay=0):
  order = orders.order('top_down', 3, 0)
  made = schedules.schedule(trigger, order)
  return schedules.delayed(made, delay) if delay else made


def plans(made, rounds, now=TOP):
  """What is foreseen to be active after now, whose prefix ends above it."""
  plan = Plan(now, now.index(True), 'variant')
  found = list(ahead.foreseen(made, made.init, rounds, 0, plan))
  for one in found:
    assert one == Plan(one.active, one.active.index(True), 'variant')
  return [one.active for one in found]


QUEUE = triggers.queue(1, 3, length=3, eps=0.01, step=1)


@pytest.mark.parametrize('delay', [0, 1])
def test_a_queue_is_asked_what_it_would_do_if_the_score_did_not_move(delay):
  waits = schedule(QUEUE, delay)
  assert plans(waits, range(6 + delay)) == [TWO]
  assert plans(waits, range(9)) == [TWO, WHOLE]
  assert plans(waits, range(3 + delay)) == []
  assert plans(schedule(triggers.dense(3)), range(99), WHOLE) == []


def test_a_schedule_by_rounds_is_asked_for_later_ones():
  made = schedule(triggers.fixed(1, 3, interval=5, step=1))
  assert plans(made, range(1, 9)) == [TWO]
  assert plans(made, range(1, 5)) == []
  assert plans(made, range(5, 99), TWO) == [WHOLE]


def renamed(stage):
  """The stage under a name that makes its programs new ones."""
  algorithm = stage.algorithm._replace(name=f'ahead{len(RUNS)}')
  RUNS.append(algorithm)
  return stage._replace(algorithm=algorithm)


def compiled(change=lambda stage: stage, run=None, **options):
  """(thread and name of each program that is compiled for chunks of clients,
  what a run gives). run: by default, of one stage that is changed."""
  names = []
  watched = [names]

  def note(event, seconds, **about):
    if event.endswith('backend_compile_duration') and watched:
      thread = threading.current_thread().name
      watched[0].append((thread.split('_')[0], about.get('fun_name', '')))

  jax.monitoring.register_event_duration_secs_listener(note)
  if run is None:
    stage = renamed(change(world.stages(7, TRIGGER)[0]))
    _, state, records = world.simulate([stage], **options)
    given = state.roles, records
  else:
    given = run()
  watched.clear()
  ours = (
    'step_chunk',
    'begin_chunk',
    'finish_chunk',
    'evaluate_chunk',
    'derive',
  )
  found = [x for x in names if any(name in x[1] for name in ours)]
  return found, *given


RUNS, TRIGGER = [], triggers.fixed(1, 3, interval=3, step=1)
SOON = triggers.fixed(1, 3, interval=2, step=1)


@pytest.mark.parametrize(
  'options',
  [
    {},
    pytest.param({'clients': 'chunk', 'chunk': 2}, marks=pytest.mark.slow),
    {'validate_every': 9},
  ],
)
def test_programs_are_compiled_once_in_threads_and_numbers_stay(
  monkeypatch, options
):
  early, roles, records = compiled(**options)
  monkeypatch.setattr(ahead, '_known', lambda *args: False)
  monkeypatch.setattr(coming, 'opening', lambda *args: [])
  late, others, again = compiled(**options)
  world.same(roles, others)
  assert [r['train_loss'] for r in records] == [r['train_loss'] for r in again]
  # Each once, and none in vain; but what validates the last round alone.
  assert sorted(name for _, name in early) == sorted(name for _, name in late)
  assert {thread for thread, _ in late} == {'MainThread'}
  main = [name for thread, name in early if thread == 'MainThread']
  assert main == (
    ['jit(evaluate_chunk)'] if options.get('validate_every') else []
  )


def both(trigger, **options):
  """What a run of both stages gives, and its evaluation after the last one."""
  stages = [renamed(s) for s in world.stages(7, trigger)]
  scope = evaluation.Scope(width=2)
  simulation, state, _ = world.simulate(stages, final=scope, **options)
  return state.roles, evaluation.evaluate(simulation, state, scope)


def with_and_without(monkeypatch, run):
  """What a run compiles in threads, and what it compiles where nothing after a
  stage is foreseen: with the same numbers."""
  early, roles, scores = compiled(run=run)
  for name in ('open', 'evaluate', 'evaluated'):
    monkeypatch.setattr(ahead.Ahead, name, lambda *args: None)
  late, others, again = compiled(run=run)
  world.same(roles, others)
  assert scores == again
  assert 'MainThread' not in {thread for thread, _ in early}
  return early, late


@pytest.mark.parametrize(
  ('trigger', 'options'),
  [
    (triggers.dense(3), {}),
    pytest.param(SOON, {}, marks=pytest.mark.slow),
    # Where what fits is measured first.
    pytest.param(
      SOON, {'clients': 'chunk', 'memory': 1e9}, marks=pytest.mark.slow
    ),
  ],
)
def test_what_comes_after_a_stage_is_compiled_while_it_lasts(
  monkeypatch, trigger, options
):
  run = functools.partial(both, trigger, **options)
  early, late = with_and_without(monkeypatch, run)
  assert sorted(name for _, name in early) == sorted(name for _, name in late)
  main = [name for thread, name in late if thread == 'MainThread']
  assert ('jit(step_chunk)' in main) == bool(options)  # what is measured
  # Of own rows, of pooled ones, of newcomers.
  assert main.count('jit(evaluate_chunk)') >= 3


@pytest.mark.slow
def test_a_wrong_guess_is_compiled_in_vain_and_changes_no_number(monkeypatch):
  """A stage that goes a block deeper in its last round, as if by a score."""
  moved = functools.partial(both, TRIGGER._replace(reads=True))
  early, late = with_and_without(monkeypatch, moved)
  assert len(early) > len(late)


def late(stage):
  """A stage whose reports come in later rounds."""
  slow = devices.lognormal(6, 3, speed=1e6, down=1e4, up=1e4, speed_sigma=1.0)
  some = selection.uniform(0, 0, 6)
  return stage._replace(arrivals=buffered(Buffered(3, 2), slow, some))


def masked(stage):
  """A stage whose clients see what the channel has opened."""
  channel = secure.secure(secure.Secure(16, 1.0, 8.0, 3, 3))
  return stage._replace(algorithm=stage.algorithm._replace(channel=channel))


@pytest.mark.slow
@pytest.mark.parametrize('change', [late, masked])
def test_what_is_not_known_before_a_round_is_not_compiled_in_vain(
  monkeypatch, change
):
  found, *_ = compiled(change)
  monkeypatch.setattr(ahead.Ahead, '_submit', lambda *args: None)
  monkeypatch.setattr(ahead.Ahead, 'open', lambda *args: None)
  again, *_ = compiled(change)
  assert sorted(name for _, name in found) == sorted(name for _, name in again)
