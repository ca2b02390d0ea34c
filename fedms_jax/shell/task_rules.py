"""What goes with a sequence of tasks, and what does not."""

from __future__ import annotations

from collections.abc import Sequence

from fedms_jax.shell.config import Config, beside
from fedms_jax.shell.config.tasks import APART, SHIELDED, TAUGHT, TasksConfig
from fedms_jax.shell.config.time import UNIFORM
from fedms_jax.simulation.state import Stage

LANGUAGE = 'causal_lm'
# Methods whose steps are no gradient of a loss plus what an optimizer adds.
UNANCHORED = {
  'scaffold': 'its steps follow control variates',
  'koala': 'its server trains on public rows, too',
}
_COMPUTED = ('ncm', 'ridge')  # heads that no step trains
# Methods whose server makes factors anew, of directions of its own.
_MERGING = ('flora', 'fedex_lora', 'flexlora', 'hetlora', 'lora_fair')


def check(config: Config) -> None:
  """Raises `ValueError` for what does not go with a sequence of tasks."""
  t, name = config.tasks, config.algorithm.name
  if not t.on:
    return
  wrong = {
    f'--stages={config.stages}': config.stages and 'its phases have no tasks',
    f'--privacy.mode={config.privacy.mode}': config.privacy.on
    and 'who meets a row in several tasks is not accounted',
    f'--eval.adapt={config.eval.adapt}': config.eval.adapt
    and 'clients would adapt to rows of all tasks at once',
    f'--model.head={config.model.head}': config.model.head
    not in ('classification', LANGUAGE)
    and 'what it has seen of each task is not followed',
    f'--partition.load={config.partition.load}': config.partition.load
    and t.name != 'class'
    and 'rows are given to tasks after they are dealt',
  }
  wrong |= {
    f'--model.name={config.model.name}': config.model.own
    and t.choice == 'herding'
    and 'it has no base whose features rows are chosen by',
  }
  c, alone = config, 'it is not followed over several tasks'
  wrong |= {
    f'--attack.data={c.attack.data}': c.attack.data != 'none' and alone,
    f'--attack.update={c.attack.update}': c.attack.update != 'none' and alone,
    f'--time.policy={c.time.policy}': c.time.on and alone,
    f'--select.name={c.select.name}': c.select.name != UNIFORM and alone,
    f'--secagg.mode={c.secagg.mode}': c.secagg.on and alone,
    f'--compression.up={c.compression.up}': c.compression.on and alone,
  }
  beside.refuse(f'--tasks.count={t.count}', wrong)
  if config.model.head == LANGUAGE:
    _check_language(t)
  if t.method == SHIELDED and name in _MERGING:
    raise ValueError(
      f'--tasks.method={t.method} does not go with --algorithm.name={name}, '
      'whose server makes the factors of LoRA anew, in other directions; '
      'allowed: fedit. Change one of them.'
    )
  if t.method in ('ewc', *APART) and name in UNANCHORED:
    raise ValueError(
      f'--tasks.method={t.method} does not go with --algorithm.name={name}: '
      f'{UNANCHORED[name]}; allowed: finetune, joint, replay, lwf, glfc.'
    )
  if name in _COMPUTED:
    _check_once(config)
  if name == 'fedweit':
    _check_weighted(t)


def _check_weighted(t: TasksConfig) -> None:
  """Raises `ValueError` where parameters of each task would be of several, or
  nobody knew of which one a row is."""
  wrong = {
    'identity': (t.identity != 'known', 'known'),
    'method': (t.method != 'finetune', 'finetune'),
    'blend': (t.blend > 0, '0'),
  }
  for name, (found, allowed) in wrong.items():
    if found:
      raise ValueError(
        f'--tasks.{name}={getattr(t, name)} does not go with --algorithm.name='
        'fedweit, which has parameters for each task, and trains those of one '
        f'at a time; allowed: {allowed}.'
      )


def _check_language(t: TasksConfig) -> None:
  """Raises `ValueError` for what is of classes, where tokens are learned."""
  wrong = {
    'name': (t.name in ('domain', 'label'), 'class, column'),
    'identity': (t.identity == 'known', 'unknown'),
    'head': (t.head == 'fresh', 'kept'),
    'method': (t.method in TAUGHT, 'finetune, joint, replay, ewc, '
               'orthogonal_lora, fot'),
  }  # fmt: skip
  for name, (found, allowed) in wrong.items():
    if found:
      raise ValueError(
        f'--tasks.{name}={getattr(t, name)} does not go with --model.head='
        f'{LANGUAGE}, which has no classes; allowed: {allowed}.'
      )


def _check_once(config: Config) -> None:
  """Raises `ValueError` where a head that is a sum over rows would miss some
  of them, or count some twice."""
  t, plain = config.tasks, TasksConfig()
  for name in ('method', 'order', 'arrival', 'window', 'blend', 'repeats'):
    value = getattr(t, name)
    if (name, value) == ('order', 'per_client'):
      continue
    if value != getattr(plain, name):
      raise ValueError(
        f'--tasks.{name}={value} does not go with --algorithm.name='
        f'{config.algorithm.name}, whose head is a sum over all rows, each '
        f'once; allowed: {getattr(plain, name)}.'
      )


def check_stages(config: Config, made: Sequence[Stage]) -> None:
  """Raises `ValueError` for stages of a method that do not remember so."""
  t, name = config.tasks, config.algorithm.name
  why = ''
  taught = t.method in (*TAUGHT, 'ewc', *APART)
  if taught and len(made) > 1:
    why = 'has stages of several models'
  elif taught and made[0].algorithm.variant is not None:
    why = 'has clients of several kinds'
  elif taught and made[0].algorithm.passes.queries:
    why = 'takes no gradients'
  elif t.method == 'ewc' and made[0].probe is None:
    why = 'has no plain gradient'
  if why:
    raise ValueError(
      f'--tasks.method={t.method} does not go with --algorithm.name={name}, '
      f'which {why}; allowed: finetune, joint, replay.'
    )
  if any(s.open for s in made) or any(s.algorithm.public for s in made):
    raise ValueError(
      f'--algorithm.name={name} has stages whose length is not known, or whose '
      f'server trains on public rows, and --tasks.count={t.count} has not; '
      'change one of them.'
    )
