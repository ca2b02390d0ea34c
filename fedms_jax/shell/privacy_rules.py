"""What does not go with privacy: what would leak, or cannot be accounted."""

from __future__ import annotations

from collections.abc import Sequence

from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import CENTRAL, EXAMPLE
from fedms_jax.simulation.state import Stage

_SCORED = ('queue', 'queue_std')  # triggers that watch a score
# Orders by gradients of private rows.
_MEASURED = ('importance', 'balanced', 'f3ocus')
EACH = ('allocation', 'dropout')  # orders that draw for each client
_MOST_COUNTED = 20_000  # clients whose plans are asked for in every round
# Methods that no sum with noise can serve, and why.
REFUSED = {
  'local': 'its clients send nothing',
  'scaffold': 'its clients send control variates, and who counts in them is '
  'not public',
  'flora': 'its server needs the messages apart',
  'fedex_lora': 'its server needs the messages apart',
  'flexlora': 'its server needs the messages apart',
  'hetlora': 'its server needs the messages apart',
  'pfedmoap': 'its server needs the messages apart',
  'lora_fair': 'its server needs the messages apart',
  'raffm': 'who held which part of a block is not public',
  'lonas': 'who held which part of a block is not public',
  'fedpft': 'its clients say how often neurons are at rest',
  'fedcaf': 'its server needs the messages apart',
  'fedkei': 'its server needs the messages apart',
  'fedweit': 'its server needs the messages apart',
  'femam': 'its server needs the messages apart',
  'fedv': 'what passes in each of its steps has no noise',
  'fedvz': 'what passes in each of its steps has no noise',
  'bbt': 'its clients send nothing',
  'ncm': 'its clients send sums, and how many rows of each class they have',
  'ridge': 'its clients send sums over their rows, and no updates',
  'ffdapt': 'what a client freezes says how many rows it has',
}

# Methods whose steps `private_gradient` makes private.
BY_EXAMPLE = (
  'fedms',
  'fedit',
  'ffa_lora',
  'rolora',
  'fedsa_lora',
  'fedprox',
  'fedper',
)


def check(config: Config, stages: Sequence[Stage]) -> None:
  """Refuses what would leak, or cannot be accounted.

  Raises:
    ValueError: it names the flag.
  """
  check_flags(config)
  p, name = config.privacy, config.algorithm.name
  if p.gate_clip and len(stages) < 2:
    raise ValueError(
      f'--privacy.gate_clip={p.gate_clip:g} is of a second stage, which '
      f'--algorithm.name={name} has not here. Leave it out.'
    )
  if p.mode == EXAMPLE and any(stage.fresh for stage in stages):
    raise ValueError(
      f'--gate.rows={config.gate.rows} fits the gate to rows of their own '
      'without noise, which --privacy.mode=example does not allow. Set '
      '--gate.rows=train.'
    )
  various = any(stage.algorithm.variant for stage in stages)
  if various and p.masks == 'private':
    raise ValueError(
      f'--privacy.masks=private does not go with --algorithm.name={name}, '
      'which trains other parts in other rounds; allowed: public.'
    )


def check_flags(config: Config) -> None:
  """What of `check` follows from the flags alone."""
  p, name = config.privacy, config.algorithm.name
  said = f'--privacy.mode={p.mode}'
  if p.mode == EXAMPLE:
    _check_example(config)
  elif name in REFUSED:
    raise ValueError(
      f'{said} does not go with --algorithm.name={name}: {REFUSED[name]}. Take '
      'another method, such as fedms, fedit or ffa_lora.'
    )
  aggregator = config.server.aggregator
  if p.mode == CENTRAL and aggregator != 'mean':
    raise ValueError(
      f'{said} does not go with --server.aggregator={aggregator}: order '
      'statistics of messages are no sum that noise could protect; allowed: '
      'mean.'
    )
  wrong = {
    f'--server.weights={config.server.weights}': (
      config.server.weights == 'tokens', 'all clients weigh alike; allowed: '
      'equal'
    ),
    f'--client.state={config.client.state}': (
      config.client.state == 'averaged', 'its means are divided by what '
      'clients weigh, which is not public; allowed: reset, kept'
    ),
  }  # fmt: skip
  for flag, (found, why) in wrong.items():
    if found:
      raise ValueError(f'{said} does not go with {flag}: {why}. Change it.')
  _check_schedule(config)
  _check_stop(config)
  _check_bands(config)
  handover = config.methods.fedms.handover
  if name == 'fedms' and handover != 'rounds':
    raise ValueError(
      f'{said} does not go with --fedms.handover={handover}: a stage that ends '
      'by its scores has no number of rounds that could be accounted; allowed: '
      'rounds.'
    )


def _check_example(config: Config) -> None:
  """Refuses methods whose steps have other gradients than those of rows."""
  name, said = config.algorithm.name, '--privacy.mode=example'
  if name not in BY_EXAMPLE:
    raise ValueError(
      f'{said} does not go with --algorithm.name={name}, whose steps are not '
      f'made of gradients of single rows; allowed: {", ".join(BY_EXAMPLE)}.'
    )
  if name == 'fedms' and 'likeness' in config.gate.inputs:
    raise ValueError(
      f'{said} does not go with --gate.inputs={config.gate.inputs}: a '
      "client's mean feature has no noise; allowed: feature, confidence."
    )
  rows = config.gate.rows
  if name == 'fedms' and rows not in ('auto', 'train'):
    raise ValueError(
      f'{said} does not go with --gate.rows={rows}: a gate that is fitted to '
      'rows of its own sees them without noise; allowed: train.'
    )
  if config.model.head == 'contrast':
    raise ValueError(
      f'{said} does not go with --model.head=contrast, which compares the rows '
      'of a batch: no gradient is of one row; allowed: any other head.'
    )


def _check_stop(config: Config) -> None:
  """Refuses an end that what a run measures decides."""
  stop = config.stop
  for name in ('target', 'patience'):
    value = getattr(stop, name)
    if value:
      raise ValueError(
        f'--privacy.mode={config.privacy.mode} does not go with --stop.{name}='
        f'{value}: a stage that ends by what it measures has no number of '
        'rounds that could be accounted. Leave it out.'
      )


def _check_bands(config: Config) -> None:
  p, c = config.privacy, config.cohort
  if p.bands == 1:
    return
  said = f'--privacy.bands={p.bands}'
  if c.sampling not in ('cyclic', 'min_separation') or p.bands > c.groups:
    raise ValueError(
      f'{said} needs clients that stay away for as many rounds; got '
      f'--cohort.sampling={c.sampling} and --cohort.groups={c.groups}. Set '
      f'--cohort.sampling=min_separation and --cohort.groups={p.bands}.'
    )
  if p.clipping == 'adaptive':
    raise ValueError(
      f'{said} does not go with --privacy.clipping=adaptive: the noise of '
      'earlier rounds was of another clip; allowed: fixed.'
    )
  if config.algorithm.name == 'fedms' and config.methods.fedms.upload_blocks:
    raise ValueError(
      f'{said} does not go with --fedms.upload_blocks='
      f'{config.methods.fedms.upload_blocks:g}; allowed: 0.'
    )


def _check_schedule(config: Config) -> None:
  p, s = config.privacy, config.schedule
  scored = s.name in _SCORED
  if scored and p.mode != CENTRAL:
    raise ValueError(
      f'--schedule.name={s.name} watches a score of private rows, which '
      f'--privacy.mode={p.mode} does not protect; allowed: those by the round. '
      'Set --schedule.name=linear.'
    )
  if scored and not p.score_noise:
    raise ValueError(
      f'--schedule.name={s.name} watches a score of private rows. Set '
      '--schedule.name=linear, or give --privacy.score_noise=<standard '
      'deviation> to release a noisy one.'
    )
  bounded = s.score in ('validation', 'train_accuracy')
  if p.score_noise and not (scored and bounded):
    raise ValueError(
      f'--privacy.score_noise={p.score_noise:g} is for a schedule that watches '
      f'a score in [0, 1]; got --schedule.name={s.name} and --schedule.score='
      f'{s.score}. Leave it out, or set --schedule.name=queue and '
      '--schedule.score=validation.'
    )
  shape = s.order == 'allocation' and s.shape == 'importance'
  if s.order in _MEASURED or shape:
    what = (
      '--schedule.shape=importance'
      if shape
      else (f'--schedule.order={s.order}')
    )
    raise ValueError(
      f'{what} measures gradients of private rows without noise, which '
      f'--privacy.mode={p.mode} does not allow. Set --schedule.order=top_down.'
    )
  clients = config.partition.num_clients
  each = s.budgets or s.order in EACH
  if each and p.mode == CENTRAL and clients > _MOST_COUNTED:
    raise ValueError(
      f'--partition.num_clients={clients} with blocks that differ between '
      'clients (--schedule.budgets, --schedule.order) would be counted in each '
      f'round; allowed: at most {_MOST_COUNTED}. Take the same blocks for all.'
    )
