"""Sequences of tasks: continual learning."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

STACKED, SHIELDED = 'orthogonal_lora', 'fot'
APART = (STACKED, SHIELDED)  # methods with a LoRA for each task
TAUGHT = ('lwf', 'glfc')  # methods that need the teacher's logits
WEIGHED = ('ewc', 'lwf', STACKED)  # methods with a term beside
KEEPING = ('replay', 'glfc')  # methods that keep rows of earlier tasks


@dataclasses.dataclass(frozen=True)
class TasksConfig:
  count: int = opt(
    0,
    'tasks that clients meet one after another, each for the rounds of '
    '--algorithm (0: none)',
    low=0,
    high=1000,
  )
  name: str = opt(
    'class',
    'what sets tasks apart: classes of their own, domains (images inverted and '
    'turned), labels of which two change places, or where rows are from, by '
    '--tasks.column',
    choices=('class', 'domain', 'label', 'column'),
  )
  column: str = opt(
    '',
    'column of the data that says where a row is from; its values, in the '
    'order in which the data has them, are shared out to the tasks',
  )
  identity: str = opt(
    'unknown',
    'whether the task of a row is known where it is scored (task-incremental), '
    'so that its classes alone compete',
    choices=('known', 'unknown'),
  )
  order: str = opt(
    'same',
    'of the tasks: the same for all clients, each its own, or half of them a '
    'task behind',
    choices=('same', 'per_client', 'staggered'),
  )
  repeats: int = opt(1, 'how often all tasks come in turn', low=1, high=1000)
  arrival: int = opt(
    0,
    'rounds over which the rows of a task arrive (0: all are there at first)',
    low=0,
    high=1_000_000,
  )
  window: int = opt(
    0,
    'rounds for which a row stays after its arrival (0: to the end of its '
    'task)',
    low=0,
    high=1_000_000,
  )
  blend: int = opt(
    0,
    'rounds in which a task takes the place of the one before, row by row (0: '
    'at once)',
    low=0,
    high=1_000_000,
  )
  method: str = opt(
    'finetune',
    'what is done against forgetting, around any algorithm: nothing, all rows '
    'of earlier tasks (joint), some of them (replay), a pull to the weights '
    'that they depend on (ewc), what the last model says (lwf), some rows and '
    'the last model with balanced losses (glfc), a LoRA for each task, '
    'orthogonal to those before (orthogonal_lora), or to what earlier tasks '
    'put into its layers (fot)',
    choices=(
      'finetune',
      'joint',
      'replay',
      'ewc',
      'lwf',
      'glfc',
      STACKED,
      SHIELDED,
    ),
  )
  memory: int = opt(
    0,
    'rows of earlier tasks that a client keeps, for replay and glfc, shared '
    'evenly by classes, or by tasks of the same classes',
    low=0,
    high=1_000_000_000,
  )
  choice: str = opt(
    'random',
    'which rows those are: at random, or the ones whose mean on the frozen '
    'base is nearest to that of all (herding)',
    choices=('random', 'herding'),
  )
  weight: float = opt(
    1.0,
    'weight of what ewc, lwf or orthogonal_lora adds to the loss',
    low=0.0,
    high=1e9,
  )
  decay: float = opt(
    1.0,
    'share of what ewc has measured before that it keeps after each task',
    low=0.0,
    high=1.0,
  )
  share: float = opt(
    0.95,
    'of the squared norm of what a task puts into a layer, the part that lies '
    'in the directions which fot keeps for it',
    low=0.0,
    high=1.0,
  )
  temperature: float = opt(
    2.0, "of the teacher's and the student's logits, for lwf", above=0.0
  )
  head: str = opt(
    'fresh',
    'the head that the first task begins with: random, or the one that was '
    'trained or loaded before (kept)',
    choices=('fresh', 'kept'),
  )

  @property
  def on(self) -> bool:
    return self.count > 0

  def check(self) -> None:
    """Raises `ValueError` for options that are for something else."""
    if not self.on:
      return self._check_off()
    m, default = self.method, type(self)()
    wrong = {
      'memory': (bool(self.memory) != (m in KEEPING), 'replay and glfc, which '
                 'need it'),
      'weight': (self.weight != default.weight and m not in WEIGHED,
                 'ewc, lwf and orthogonal_lora'),
      'choice': (self.choice != default.choice and m not in KEEPING,
                 'replay and glfc'),
      'share': (self.share != default.share and m != SHIELDED, SHIELDED),
      'decay': (self.decay != default.decay and m != 'ewc', 'ewc'),
      'temperature': (self.temperature != default.temperature and m != 'lwf',
                      'lwf'),
    }  # fmt: skip
    for name, (found, what) in wrong.items():
      if found:
        value = _said(getattr(self, name))
        raise ValueError(
          f'--tasks.{name}={value} is for --tasks.method of {what}; it is {m}. '
          'Change one of them.'
        )
    if bool(self.column) != (self.name == 'column'):
      raise ValueError(
        f'--tasks.column={self.column} is for --tasks.name=column, which needs '
        f'it; it is {self.name}. Change one of them.'
      )
    if self.name != 'class' and self.identity == 'known':
      raise ValueError(
        f'--tasks.identity=known leaves the classes of a task, and those of '
        f'--tasks.name={self.name} all have the same; allowed: unknown.'
      )

  def _check_off(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) != field.default:
        raise ValueError(
          f'--tasks.{field.name}={getattr(self, field.name)} is of a sequence '
          'of tasks, and there is none. Set --tasks.count.'
        )


def _said(value: float | str) -> str:
  return value if isinstance(value, str) else f'{value:g}'
