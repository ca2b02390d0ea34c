"""Prompt methods from flags: on which models they run, and on which not."""

import json

import jax
import numpy as np
import pytest

from fedms_jax.models.family import Model
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.shell import build, config, foundation, methods
from fedms_jax.shell.methods import prompts
from fedms_jax.simulation import driver, evaluation, observer
from fedms_jax.simulation.state import Preempted
from fedms_jax.systems.ledger import Meter
from tests import folders, world
from tests.algorithms import clip_world

USUAL = {
  'algorithm.stage1_rounds': 1,
  'algorithm.stage2_rounds': 1,
  'pfedmoap.width': 4,
  'pfedmoap.heads': 2,
  'pfedmoap.experts': 3,
  'pfedprompt.rows': 5,
  'fedotp.rounds': 9,
  'pfedmma.blocks': 2,
  'pfedmma.width': 3,
  'partition.num_clients': 6,
  'cohort.size': 3,
  'client.batch_size': 4,
  'client.epochs': 1,
  'columns.batch': 32,
  'prompt.length': 3,
}
CLIP = {'model.name': 'a/clip', 'model.head': 'zero_shot'}


def made(name, **flags):
  flat = {k.replace('__', '.'): v for k, v in flags.items()}
  found = config.from_values(USUAL | {'algorithm.name': name} | flat)
  config.validate(found)
  return found


def on_clip(name, **flags):
  """(stages, config) on the small CLIP."""
  flags = {k.replace('.', '__'): v for k, v in CLIP.items()} | flags
  found = made(name, **flags)
  stages = methods.stages(found, clip_world.model(), world.CLASSES)
  return stages, found


def on_vit(name, **flags):
  model = Model(world.backbone(), {})
  return methods.stages(made(name, **flags), model, world.CLASSES)


class Stop(observer.Silent):
  """Asks to stop after each round."""

  def stop_requested(self):
    return True


def simulate(stages, found, folder, watch):
  """(evaluation, state, ledgers) of a run that may be resumed."""
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      simulation = driver.Simulation(
        evaluation.limited(world.federation(), 8, 0), clip_world.start(),
        stages, build.options(found), run_store=keep, observer=watch,
      )  # fmt: skip
      state = simulation.run(keep.restore(simulation))
      scores = evaluation.evaluate(simulation, state, evaluation.Scope())
      return scores, state, simulation.ledgers
    finally:
      keep.close()


MODELS = {
  'fedclip': {'global'},
  'promptfl': {'global'},
  'promptfolio': {'global', 'local', 'mixture'},
  'fedpgp': {'global', 'local'},
  'pfedmoap': {'global', 'local', 'mixture'},
  'pfedprompt': {'global', 'local', 'mixture'},
  'fedotp': {'global', 'local', 'mixture'},
  'pfedmma': {'local'},
}


# The others differ in what the laws of the family test.
QUICK = ('promptfl', 'fedpgp')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in prompts.STAGES
  ],
)
def test_two_rounds_an_evaluation_and_a_resumed_run(name, tmp_path):
  stages, found = on_clip(name)
  (stage,) = stages
  records = observer.Recorder()
  whole = simulate(stages, found, tmp_path / 'whole', records)
  scores, state, ledgers = whole
  assert [r['depth'] for r in records.records] == [world.BLOCKS] * 2
  assert np.isfinite([r['train_loss'] for r in records.records]).all()
  assert set(scores['models']) == MODELS[name] | {'pretrained'}
  assert ('own_weight' in scores) == (name == 'pfedmoap')
  assert ledgers[stage.name].bytes_up > 0
  with pytest.raises(Preempted):
    simulate(stages, found, tmp_path / 'pieces', Stop())
  again, resumed, same = simulate(
    stages, found, tmp_path / 'pieces', observer.Silent()
  )
  world.same(resumed.roles, state.roles)
  assert json.dumps(again) == json.dumps(scores) and same == ledgers


@pytest.mark.parametrize('name', ['promptfl', 'promptfolio'])
def test_a_prompt_of_the_input_runs_the_same_in_the_loop_and_in_wide_vmap(name):
  (stage,) = on_vit(name, client__optimizer='sgd')
  _, state, records = world.simulate([stage], clients='loop', scope='run')
  _, other, _ = world.simulate([stage], clients='vmap', scope='step')
  world.close(state.roles.shared, other.roles.shared)
  assert np.isfinite([record['train_loss'] for record in records]).all()
  start = jax.jit(stage.algorithm.begin)(jax.random.key(0), world.start())
  assert set(start.shared) == {'prompt', 'head'}
  assert start.shared['prompt'].shape == (3, world.WIDTH)


@pytest.mark.parametrize(
  'name', ['fedclip', 'fedpgp', 'pfedmoap', 'pfedprompt', 'fedotp', 'pfedmma']
)
def test_a_model_without_class_prompts_is_refused(name):
  with pytest.raises(ValueError) as error:
    on_vit(name)
  for said in (f'name={name}', 'text tower', '=vit', 'head=zero_shot'):
    assert said in str(error.value)


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    ('promptfl', {'prompt__length': 10}, 'allowed: 1 to 9'),
    ('fedpgp', {'pretrain__mode': 'full'}, '--pretrain.mode=full'),
    ('pfedmoap', {'pfedmoap__width': 10}, 'of width 8'),
    ('pfedmoap', {'pfedmoap__heads': 3}, 'multiple of the heads'),
    ('pfedmoap', {'server__aggregator': 'median'}, '--server.aggregator'),
    ('pfedmma', {'pfedmma__blocks': 3}, 'allowed: 1 to 2'),
  ],
)
def test_what_does_not_fit_a_clip_is_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    on_clip(name, **flags)
  assert said in str(error.value)


@pytest.mark.parametrize('name', ['promptfl', 'promptfolio'])
def test_prompts_of_inputs_refuse_what_they_have_no_use_for(name):
  with pytest.raises(ValueError, match=r'--prompt.words=.a photo. .*zero_shot'):
    on_vit(name, prompt__words='a photo')
  with pytest.raises(ValueError, match='--model.head=contrast has two'):
    on_vit(name, model__name='a/clip', model__head='contrast')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return folders.checkpoint(tmp_path_factory.mktemp('clip'), 'clip')


def read(folder, names, **flags):
  found = made('promptfl', model__name=str(folder), model__head='zero_shot',
               **flags)  # fmt: skip
  tower = foundation.find(found.model)
  return foundation.text_tower(found.model, found.prompt, names, tower)


def test_the_text_tower_reads_names_and_words(checkpoint):
  words = folders.VOCABULARY
  text = read(checkpoint, ('sun', 'cloud rain'), prompt__words='light blue')
  start, end = words['[CLS]'], words['<eos>']
  unknown = words['[UNK]']  # the period
  assert text['tokens'].tolist() == [
    [start, words['sun'], unknown, end, -1],
    [start, words['cloud'], words['rain'], unknown, end],
  ]
  assert text['words'].tolist() == [words['light'], words['blue']]
  assert 'words' not in read(checkpoint, ('sun',))


def test_a_name_that_is_too_long_for_the_prompt_is_told(checkpoint):
  names = ('sun', 'cloud rain')
  read(checkpoint, names, prompt__length=7)
  with pytest.raises(ValueError, match="length=8 and the class 'cloud rain'"):
    read(checkpoint, names, prompt__length=8)
  with pytest.raises(ValueError, match='of 8 tokens and the class'):
    read(checkpoint, names, prompt__words='sun ' * 8)


# Passes of the text tower in a step: there and back for each prompt that
# trains; and in a round, of pFedMoAP's two experts.
PASSES = {
  'fedclip': (0, 0),
  'promptfl': (2, 0),
  'promptfolio': (4, 0),
  'fedpgp': (4, 0),
  'pfedmoap': (2, 2),
  'pfedprompt': (2, 0),
  'fedotp': (4, 0),
}


@pytest.mark.parametrize('name', PASSES)
def test_the_ledger_counts_the_text_tower_once_a_step(name):
  (stage,), _ = on_clip(name, pfedmoap__experts=3)
  method, step, once = stage.algorithm, *PASSES[name]
  meter = Meter(
    method, clip_world.begin(method), batch=4, slots=0,
  )  # fmt: skip
  shown = {'newcomers': 0, 'cohort': 4, 'derived': 0, 'scope': 'run'}
  dense = (True,) * world.BLOCKS
  spent = meter.group(
    world.DENSE, dense, clients=3, examples=0, steps=5, **shown
  )
  # Of 4 names with 4 tokens and 3 vectors of width 12, in 2 blocks: layers of
  # attention and of the MLP, then products of attention.
  tokens = clip_world.TOKENS.shape[1] + clip_world.LENGTH
  block = 2 * tokens * (4 + 2) * 12**2 + 2 * 2 * tokens**2 * 12
  one = len(clip_world.TOKENS) * 2 * block
  assert spent.client_flops == (5 * step + 3 * once) * one
  assert spent.simulator_flops == spent.client_flops
