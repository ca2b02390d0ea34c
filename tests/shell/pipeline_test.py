"""Runs of several stages, in which all weights train before a method does."""

import json
import math

import jax
import numpy as np
import pytest

from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.types import Passes, Plan
from fedms_jax.persistence import run_store
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.persistence.writers import timeless
from fedms_jax.shell import config, flags, main, simulated
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import evaluation, observer
from fedms_jax.simulation import scores as scoring
from fedms_jax.simulation.state import Preempted
from fedms_jax.systems import cost
from tests import folders, world

SMALL = (
  '--partition.num_clients=4', '--partition.unseen_clients=1',
  '--partition.min_rows=5', '--partition.name=iid', '--cohort.size=2',
  '--model.blocks=2', '--model.width=8', '--model.heads=2',
  '--algorithm.stage1_rounds=1', '--algorithm.stage2_rounds=1',
  '--client.steps=2', '--pretrain.batch_size=8', '--noprogress',
  '--notensorboard',
)  # fmt: skip
IMAGES = (*SMALL, '--data.source=synthetic', '--data.synthetic_rows=120')


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  folder = folders.texts(tmp_path_factory.mktemp('texts'), 90)
  return (
    *SMALL, f'--data.source={folder}', '--data.train_split=test',
    '--data.input_column=text', '--data.label_column=label',
    '--data.max_tokens=24',
  )  # fmt: skip


def made(*words):
  return flags.parse(['fedms', *words])


class StopEachRound(observer.Silent):
  def stop_requested(self):
    return True


def run(found, folder=None, watch=None):
  """(state or None, records, scores) of a run, on the disk or not."""
  records = observer.Recorder()
  watch = observer.Observers(records, *([watch] if watch else []))
  home = worlds.world(found)
  if folder is None:
    simulation = simulated.simulation(found, home, run_store.Memory(), watch)
    state = simulation.run()
    return state, records.records, simulation
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = run_store.Disk(workdir, 2)
    try:
      simulation = simulated.simulation(found, home, keep, watch)
      state = keep.restore(simulation)
      try:
        state = simulation.run(state)
      except Preempted:
        return None, records.records, simulation
      return state, records.records, simulation
    finally:
      keep.close()


PIPELINE = (
  '--stages=S3,F1x2,S2,F1x2,linear_probe', '--client.state=kept',
  '--server.optimizer=nesterov', '--client.optimizer=adamw',
  '--algorithm.stage2_rounds=0',
)  # fmt: skip


@pytest.mark.slow
def test_a_pipeline_stopped_at_every_round_ends_bitwise_the_same(tmp_path):
  """With kept states, a server that goes on, and a base that was trained."""
  found = made(*IMAGES, *PIPELINE)
  whole, records, _ = run(found, tmp_path / 'whole')
  names = [record['stage'] for record in records]
  assert names == [
    'server-1', 'federated-1', 'server-2', 'federated-2', 'global'
  ]  # fmt: skip
  pieces, state = [], None
  while state is None:
    state, part, _ = run(found, tmp_path / 'pieces', StopEachRound())
    pieces += part
  assert len(pieces) == 5
  assert [*map(timeless, pieces)] == [*map(timeless, records)]
  world.same(state.roles, whole.roles)
  world.same(
    {k: p.memory for k, p in state.past.items()},
    {k: p.memory for k, p in whole.past.items()},
  )
  assert [whole.past[k].clock for k in ('server', 'federated')] == [5, 4]


@pytest.mark.slow
def test_phases_of_no_length_change_nothing():
  left = run(made(*IMAGES, '--stages=S2,F0x2'))[0]
  right = run(made(*IMAGES, '--stages=S2'))[0]
  world.same(left.roles, right.roles)


@pytest.mark.slow
def test_one_round_s_client_knows_what_the_round_before_made():
  """A clients' optimizer is in its store, under one name for all phases."""
  found = made(*IMAGES, '--stages=F1x2,S1,F1x2', '--client.state=kept',
               '--cohort.size=4', '--client.optimizer=adam')  # fmt: skip
  state, _, simulation = run(found)
  store = simulation.store(state)
  states = store.gather(np.arange(4))
  counts = [
    np.asarray(x) for x in jax.tree.leaves(states) if x.dtype == np.int32
  ]
  assert counts and all((c == 4).all() for c in counts)


@pytest.mark.slow
def test_the_method_begins_on_what_the_phases_made():
  state, _, simulation = run(
    made(*IMAGES, '--stages=S2,linear_probe', '--algorithm.stage1_rounds=0',
         '--algorithm.stage2_rounds=1')
  )  # fmt: skip
  alone = run(made(*IMAGES, '--stages=S2'))[0]
  trained = {k: x for k, x in alone.roles.shared.items() if k != 'head'}
  world.same(state.roles.frozen['base'], trained)
  assert simulation.stages[-1].rebased
  scores = evaluation.evaluate(simulation, state, evaluation.Scope())
  assert set(scores['models']) == {'pretrained', 'global'}


def test_another_head_takes_over_the_blocks_and_begins_fresh():
  state, _, _ = run(
    made(*IMAGES, '--stages=S2,linear_probe',
         '--pretrain.head=masked_patches', '--model.hidden_patches=0.5',
         '--algorithm.stage2_rounds=0')
  )  # fmt: skip
  alone = run(
    made(*IMAGES, '--stages=S2', '--model.head=masked_patches',
         '--model.hidden_patches=0.5')
  )[0]  # fmt: skip
  base, before = state.roles.frozen['base'], alone.roles.shared
  world.same(base['blocks'], before['blocks'])
  assert 'mask' in before['stem'] and 'mask' not in base['stem']
  assert state.roles.shared['head']['kernel'].shape == (8, 10)


@pytest.mark.slow
def test_windows_leave_blocks_as_they_were(texts):
  words = ('--model.name=gpt', '--model.head=causal_lm', '--cohort.size=1',
           '--client.optimizer=adamw', '--client.weight_decay=0.5',
           '--ffdapt.share=0.5')  # fmt: skip
  state, records, simulation = run(made(*texts, *words, '--stages=W1x2'))
  assert records[0]['depth'] == 1
  start = simulation.initial.frozen['base']['blocks']
  moved = [
    any(
      bool((x[b] != y[b]).any())
      for x, y in zip(
        jax.tree.leaves(start),
        jax.tree.leaves(state.roles.shared['blocks']),
        strict=True,
      )
    )
    for b in range(2)
  ]
  assert moved == [False, True]
  whole = run(made(*texts, *words, '--stages=F1x2'))
  assert whole[0].ledger.client_flops > 1.1 * state.ledger.client_flops


def test_a_language_model_from_nothing_is_scored_in_bits(texts, tmp_path):
  words = (*texts, '--model.name=gpt', '--model.head=causal_lm',
           '--model.tokenizer=bpe', '--model.vocabulary=300',
           '--stages=S2,F1x2', f'--workdir={tmp_path}/run')  # fmt: skip
  assert main.main(['fedms', *words]) == 0
  found = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  (scores,) = found['models'].values()
  assert 1.0 < scores['bits_per_byte'] < 30.0
  # What the server does by itself costs no client.
  assert found['ledger']['server']['client_flops'] > 0
  assert found['total'] == found['ledger']['federated']
  line = json.loads(
    (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1]
  )
  assert line['tokens'] > 0 and line['drift'] > 0 and -1 <= line['cosine'] <= 1
  folder = tmp_path / 'run' / 'model'
  assert {p.name for p in folder.iterdir()} == {
    'config.json', 'tokenizer.json', 'tokenizer_config.json'
  }  # fmt: skip
  again = [*words, '--resume']
  assert main.main(['fedms', *again]) == 0
  out = tmp_path / 'out'
  assert main.main(['fedms', 'export', *words, '--what=merged',
                    f'--out={out}']) == 0  # fmt: skip
  settings = json.loads((out / 'config.json').read_text())
  assert settings['architectures'] == ['GPT2LMHeadModel']


def test_the_tokens_of_a_bpe_are_learned_of_public_texts_alone(
  texts, monkeypatch
):
  from fedms_jax.data import new_tokenizer

  seen, train = [], new_tokenizer.trained
  monkeypatch.setattr(
    new_tokenizer, 'trained',
    lambda read, *rest: train(seen.extend(read) or seen, *rest),
  )  # fmt: skip
  words = ('--model.name=gpt', '--model.head=causal_lm', '--data.pack',
           '--model.tokenizer=bpe', '--model.vocabulary=300',
           '--stages=S2')  # fmt: skip
  home = worlds.world(made(*texts, *words))
  tokenizer = home.checkpoint.folder / 'tokenizer.json'
  import tokenizers

  reader = tokenizers.Tokenizer.from_file(str(tokenizer))
  rows = home.data.table.columns['inputs']

  def spoken(numbers):
    out = []
    for row in numbers:
      text = reader.decode(
        [int(t) for t in rows[row] if t >= 0], skip_special_tokens=False
      )
      out += [t for t in text.split(new_tokenizer.END) if t]
    return sorted(out)

  assert len(seen) > 10
  assert spoken(home.data.public) == sorted(t[:999] for t in seen)
  assert set(spoken(home.data.train.rows)) - set(seen)


def test_means_weigh_as_they_are_told(texts):
  words = ('--model.name=gpt', '--model.head=causal_lm', '--stages=F1x1')
  for weights in ('rows', 'tokens', 'equal'):
    found = made(*texts, *words, f'--server.weights={weights}')
    home = worlds.world(found)
    simulation = simulated.simulation(
      found, home, run_store.Memory(), observer.Observers()
    )
    sample, arrivals = simulation.sampler(0)
    cohort = sample(arrivals.init, 0)
    mine = [home.data.train.of(int(k)) for k in cohort.ids]
    tokens = [(home.data.table.columns['inputs'][m] >= 0).sum() for m in mine]
    expected = {
      'rows': [len(m) for m in mine], 'tokens': tokens, 'equal': [1, 1]
    }[weights]  # fmt: skip
    np.testing.assert_array_equal(cohort.weights, expected)


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (('--model.name=bert', '--stages=S1,fedms', '--pretrain.head=masked_lm'),
     '--data.masks=once'),
    (('--model.name=bert', '--model.head=masked_lm', '--data.masks=fresh',
      '--stages=S1,fedms'), '--data.masks=fresh'),
    (('--model.name=gpt', '--client.state=kept', '--algorithm.name=fedavg'),
     '--client.state=kept'),
    (('--model.name=gpt', '--algorithm.name=ffdapt', '--ffdapt.most=2'),
     '`most`=2'),
  ],
)  # fmt: skip
def test_what_would_change_numbers_is_refused(texts, words, said):
  with pytest.raises(ValueError, match=said):
    worlds.world(made(*texts, *words))


def test_perplexity_is_of_all_tokens():
  """Two tokens of one nat and one of four: exp 2, and neither the mean of the
  rows' perplexities nor that of their losses."""
  own = np.array([[[2.0, 2.0]], [[4.0, 1.0]]], np.float32)[:, 0]
  found = scoring.losses(own, None)
  assert math.exp(found['own_token_loss']) == pytest.approx(7.389, rel=1e-3)
  assert found['own_loss_worst_decile'] == 4.0


def test_the_section_of_a_pipeline_is_kept_with_the_run():
  text = flags.to_text(made(*IMAGES, '--stages=S2,fedavg'))
  assert '--stages=S2,fedavg' in text and '--algorithm.name=fedavg' in text
  words = [line for line in text.splitlines()]
  assert flags.parse(['fedms', *words]) == made(*IMAGES, '--stages=S2,fedavg')
  assert isinstance(config.Config().pipeline.phases, tuple)


def test_a_plan_says_what_silos_send_and_hold(capsys):
  words = ('plan', '--model.name=gpt', '--model.head=causal_lm',
           '--model.width=32', '--model.blocks=2', '--data.max_tokens=16',
           '--stages=S5,F3x4', '--cohort.size=8', '--client.batch_size=4',
           '--client.optimizer=adamw')  # fmt: skip

  def planned(*more):
    assert main.main(['fedms', *words, *more]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line][-2:]

  sent, held = planned('--split=1')
  assert sent.startswith('a round of F3x4, 8 clients') and '256 tokens' in sent
  assert '1 to a client' in held and ' s of' not in held
  _, split = planned('--split=8', '--rate=1e6')
  assert '8 to a client' in split and 's of computing' in split
  assert split != held
  assert main.main(['fedms', *words, '--split=0']) == 2
  assert '--split=0' in capsys.readouterr().err


def test_a_frozen_block_inside_the_stack_saves_a_third_of_its_cost():
  """Its forward and the gradient of its input remain; below the lowest active
  block neither the latter nor that of weights is computed."""
  one = BackboneCost(stem=0, block=1.0, head=0, tokens=1, activation=0)

  def flops(*active):
    return cost.client_flops(
      one, Passes(trained=1, frozen=0, full=True), Plan(active, 0), 0.0
    )

  assert flops(True, True, True) == 9
  assert flops(True, False, True) == 8
  assert flops(False, True, True) == 7
