"""How clients and server train."""

from __future__ import annotations

import dataclasses
import math

from fedms_jax.shell.fields import opt

AGGREGATORS = (
  'mean',
  'median',
  'trimmed_mean',
  'krum',
  'multi_krum',
  'bulyan',
  'norm_bound',
  'geometric_median',
  'centered_clip',
  'flame',
  'foolsgold',
)
# Aggregators that look at an option.
READ_BY = {
  'keep': ('multi_krum',),
  'bound': ('norm_bound', 'centered_clip'),
  'passes': ('geometric_median', 'centered_clip'),
  'flame_noise': ('flame',),
  # FoolsGold must know whose a change is.
  'bucket': AGGREGATORS[1:-1],
}


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  name: str = opt('fedms', 'what is simulated')
  stage1_rounds: int = opt(
    40, 'rounds of the global expert', low=0, high=1_000_000_000
  )
  stage2_rounds: int = opt(
    10, 'rounds of local experts and gate', low=0, high=1_000_000_000
  )
  label_prior: str = opt(
    '',
    'also evaluate every model with its logits corrected by so many times the '
    "log share of each class among a client's training rows: a number, or "
    "'validation' for the best on validation rows; for any method, and no part "
    'of it (empty: not)',
  )
  head_start: str = opt(
    '',
    'what makes the head that a method starts from, in a round of all clients '
    'before its own: what FGL makes of the statistics of their classes, by '
    '--fgl.*; for any method that has a head, and no part of it (empty: the '
    'head is as it was pre-trained or loaded)',
    choices=('', 'fgl'),
  )

  @property
  def prior(self) -> float | None:
    """The weight of the class shares; None: it is learned."""
    learned = self.label_prior == 'validation'
    return None if learned else float(self.label_prior)

  def check(self) -> None:
    """Raises `ValueError` for a weight of class shares that is none."""
    try:
      value = self.prior if self.label_prior else 0.0
      if value is not None and not 0 <= value <= 100:
        raise ValueError
    except ValueError:
      raise ValueError(
        f'--algorithm.label_prior={self.label_prior!r} is not allowed; '
        "allowed: 0 to 100, or 'validation'."
      ) from None


@dataclasses.dataclass(frozen=True)
class ClientConfig:
  optimizer: str = opt(
    'adam', 'local optimizer', choices=('sgd', 'adam', 'adamw')
  )
  learning_rate: float = opt(0.003, 'local learning rate', above=0.0)
  momentum: float = opt(0.9, 'for sgd', low=0.0, high=1.0)
  weight_decay: float = opt(0.0, 'decoupled, for adamw', low=0.0)
  beta1: float = opt(0.9, 'for adam and adamw', low=0.0, high=0.9999)
  beta2: float = opt(0.999, 'for adam and adamw', low=0.0, high=0.99999)
  schedule: str = opt(
    'constant',
    'learning rates over all local steps of the run: as they are, or a warm-up '
    'and a cosine (which needs client.steps)',
    choices=('constant', 'cosine'),
  )
  warmup: float = opt(
    0.05, 'cosine: part of all steps that warms up', low=0.0, high=1.0
  )
  final_rate: float = opt(
    0.1, 'cosine: last rate over the first', low=0.0, high=1.0
  )
  state: str = opt(
    'reset',
    "what becomes of a client's optimizer after a round: it begins anew, stays "
    'with the client, or is averaged by the server (fdapt, and F in --stages)',
    choices=('reset', 'kept', 'averaged'),
  )
  max_norm: float = opt(1.0, 'clip the gradient norm (0: never)', low=0.0)
  epochs: int = opt(
    2, "local passes over the client's rows", low=1, high=1_000_000
  )
  steps: int = opt(
    0, 'local steps instead of epochs (0: epochs)', low=0, high=1_000_000
  )
  batch_size: int = opt(8, 'B, local batch size', low=1, high=1 << 20)
  personal_learning_rate: float = opt(
    -1.0,
    'for the personal part (0: client.learning_rate; -1: 10/3 of that for a '
    'local expert of fedms that learns by the loss of the mixture alone and by '
    'Adam, else 1e-3)',
    low=-1.0,
  )

  def check(self) -> None:
    """Raises `ValueError` for a personal rate between none and 0."""
    rate = self.personal_learning_rate
    if -1.0 < rate < 0.0:
      raise ValueError(
        f'--client.personal_learning_rate={rate!r} is not allowed; allowed: '
        '-1, 0 and more.'
      )


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  optimizer: str = opt(
    'mean',
    'what the server does with the mean update',
    choices=(
      'mean',
      'momentum',
      'nesterov',
      'fedmom',
      'adagrad',
      'adam',
      'yogi',
    ),
  )
  learning_rate: float = opt(1.0, 'server learning rate', above=0.0)
  momentum: float = opt(
    0.9, 'for momentum, nesterov and fedmom', low=0.0, high=1.0
  )
  weights: str = opt(
    'rows',
    'what a client weighs in a mean: its training rows, their tokens, or as '
    'much as any other',
    choices=('rows', 'tokens', 'equal'),
  )
  aggregator: str = opt(
    'mean',
    'how the updates of clients are merged: by their mean, or so that a few '
    'bad ones do little',
    choices=AGGREGATORS,
    plugins='aggregators',
  )
  trim: float = opt(
    0.2,
    'trimmed_mean: share of the clients to leave out at either end',
    above=0.0,
    high=0.49,
  )
  byzantine: int = opt(
    1, 'krum, multi_krum, bulyan: clients of a cohort that may be bad', low=0
  )
  keep: int = opt(
    0,
    'multi_krum: clients whose mean is taken (0: all but byzantine + 2)',
    low=0,
    high=1 << 20,
  )
  bound: float = opt(
    0.0,
    'norm_bound: largest L2 norm of an update; centered_clip: largest distance '
    'to the center (0: the median of the round)',
    low=0.0,
    high=1e9,
  )
  passes: int = opt(
    4, 'geometric_median and centered_clip: steps', low=1, high=100
  )
  flame_noise: float = opt(
    0.001,
    'flame: standard deviation of its noise, over the median norm',
    low=0.0,
    high=1e3,
  )
  bucket: int = opt(
    1,
    'updates of so many clients, drawn in each round, are averaged before they '
    'are merged',
    low=1,
    high=1 << 20,
  )


@dataclasses.dataclass(frozen=True)
class GateConfig:
  kind: str = opt(
    'softmax',
    'how the experts are weighed (fixed: by gate.bias, without a gate)',
    choices=('softmax', 'sigmoid', 'per_class', 'fixed'),
  )
  scope: str = opt(
    'shared',
    'whose the gate is: averaged by the server, or of each client alone',
    choices=('shared', 'local'),
  )
  tower: str = opt(
    'frozen',
    'features of the gate: of the frozen base, or of a tower with '
    'LoRA of its own',
    choices=('frozen', 'lora'),
  )
  reduction: int = opt(
    16, 'D over the width of the gate adapter', low=1, high=1 << 16
  )
  level: str = opt(
    'token',
    'of language models: weigh the experts for each token, or for a sequence '
    '(of next tokens: for what has been read of it)',
    choices=('token', 'sequence'),
  )
  bias: str = opt(
    'auto',
    'start of the gate: log-odds of the global expert; auto: 2.6, thirteen '
    'fourteenths of the mixture, where the local expert learns by the loss of '
    'the mixture alone, and so adds what the global one lacks, by Adam; else '
    '0; ours',
  )
  learning_rate: float = opt(
    1e-4, 'for the gate (0: client.learning_rate)', low=0.0
  )
  rows: str = opt(
    'train',
    'rows that the gate learns from: those that the local expert trains on '
    '(train); or rows that it does not, to which the gate is fitted at the end '
    "of each client's round: validation rows, training rows that are held out, "
    'or held out of a second local expert alone (crossfit); all but train are '
    'ours',
    choices=('train', 'validation', 'holdout', 'crossfit'),
  )
  share: float = opt(
    0.25,
    'share of the training rows that is held out, for holdout and crossfit',
    above=0.0,
    high=0.9,
  )
  most_rows: int = opt(
    32, 'most rows of a client that its gate is fitted to', low=1, high=1 << 16
  )
  public: int = opt(
    0,
    'public rows, foreign to a client, beside those that its gate is fitted to',
    low=0,
    high=1 << 16,
  )
  inputs: str = opt(
    'auto',
    'what the gate reads, comma-separated: the frozen feature, confidence '
    '(entropy and margin of both experts, agreement), likeness (to the '
    "client's own features and to everyone's); empty: nothing, a log-odds "
    'alone; auto: feature and confidence where there are classes, else '
    'feature; ours but for the feature',
  )
  odds_rate: float = opt(
    -1.0,
    "learning rate of a log-odds of the gate's own beside its adapter, and of "
    'what confidence and likeness add to it where it is fitted (0: there is '
    'none; -1: 0.05 where the gate is fitted to rows of its own, else '
    'none); ours',
    low=-1.0,
  )
  fit_steps: int = opt(
    50,
    'steps of Adam in which the gate is fitted, on all of its rows at once',
    low=1,
    high=100_000,
  )
  pull: float = opt(
    10.0,
    'what holds a gate that is fitted to where its round began, in rows',
    low=0.0,
  )
  mix: str = opt(
    'logits',
    'what is mixed',
    choices=('logits', 'probabilities', 'features', 'top1'),
  )

  def check(self) -> None:
    """Raises `ValueError` for a start that is no log-odds."""
    try:
      finite = self.bias == 'auto' or math.isfinite(float(self.bias))
    except ValueError:
      finite = False
    if not finite:
      raise ValueError(
        f'--gate.bias={self.bias!r} is not allowed; allowed: a finite number, '
        "or 'auto'."
      )
