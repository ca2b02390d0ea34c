"""The simulation of a run: its first round is compiled while the server
trains."""

import threading
import time

import jax
import pytest

from fedms_jax.persistence import run_store
from fedms_jax.shell import flags, simulated
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import coming, observer
from tests import world

SMALL = (
  '--partition.num_clients=4', '--partition.unseen_clients=1',
  '--partition.min_rows=5', '--partition.name=iid', '--cohort.size=2',
  '--model.blocks=2', '--model.width=8', '--model.heads=2',
  '--algorithm.stage1_rounds=2', '--algorithm.stage2_rounds=0',
  '--client.steps=2', '--pretrain.batch_size=8', '--noprogress',
  '--schedule.name=dense', '--pretrain.epochs=3',
  '--data.source=synthetic', '--data.synthetic_rows=120',
)  # fmt: skip


class Patient(observer.Silent):
  """Goes on after a round of the server when so many rounds can be trained."""

  def __init__(self, found, programs):
    self._found, self._programs = found, programs

  def round(self, record):
    for _ in range(6000):
      if len(of(self._found, 'step_chunk')) >= self._programs:
        return
      time.sleep(0.01)


def compiled(programs, *words):
  """(what is compiled while the server trains, and after it: names of programs
  by thread; the roles at the end). programs: that train, which are waited for
  while the server does."""
  config = flags.parse(['fedms', *SMALL, *words])
  found = [[], []]
  at = [found[0]]

  def note(event, seconds, **about):
    if event.endswith('backend_compile_duration') and at:
      thread = threading.current_thread().name.split('_')[0]
      at[0].append((thread, about.get('fun_name', '')))

  jax.monitoring.register_event_duration_secs_listener(note)
  watch = observer.Observers(Patient(found[0], programs))
  simulation = simulated.simulation(
    config, worlds.world(config), run_store.Memory(), watch
  )
  at[0] = found[1]
  state = simulation.run()
  at.clear()
  return *(list(filter(ours, some)) for some in found), state.roles


def ours(compiled):
  """Whether a program trains, derives or evaluates."""
  _, program = compiled
  return '_chunk' in program or 'derive' in program


def of(found, name):
  return [thread for thread, program in found if name in program]


@pytest.mark.parametrize(
  'words',
  [
    (),
    # What fits is measured first, as on an accelerator.
    pytest.param(('--engine.memory_mb=900',), marks=pytest.mark.slow),
    pytest.param(('--algorithm.name=local',), marks=pytest.mark.slow),
  ],
)
def test_the_first_round_is_compiled_while_the_server_trains(
  monkeypatch, words
):
  early, then, roles = compiled(2, *words)
  monkeypatch.setattr(coming, 'first', lambda *args: [])
  alone, late, others = compiled(1, *words)
  world.same(roles, others)
  assert len(of(early, 'step_chunk')) > len(of(alone, 'step_chunk'))
  assert len(of(then, 'step_chunk')) < len(of(late, 'step_chunk'))
  assert len(early + then) == len(alone + late)


def test_so_are_the_plans_that_come_if_no_score_moves(monkeypatch):
  deeper = '--schedule.name=queue', '--schedule.queue_length=2'
  early, *_ = compiled(3, *deeper, '--algorithm.stage1_rounds=9')
  # The server's, of one block, and of both.
  assert of(early, 'step_chunk') == ['compile'] * 3
