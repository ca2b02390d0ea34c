"""The data of a run, and how clients get and visit it."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class DataConfig:
  source: str = opt(
    'digits',
    'digits (embedded), synthetic, a Hub data set id, or a local folder or '
    'file that `datasets` reads (Parquet, Arrow, CSV, JSON lines, ImageFolder)',
  )
  subset: str = opt('', 'configuration name of a Hub data set')
  revision: str = opt('', 'revision of a Hub data set')
  train_split: str = opt('train', 'split whose rows the clients and server get')
  test_split: str = opt(
    'test',
    "split used as the pooled test set; if absent, or the source's only "
    "split, clients' test rows",
  )
  input_column: str = opt('', 'column of images or texts (empty: found)')
  label_column: str = opt('', 'column of labels (empty: found)')
  target_column: str = opt(
    '',
    'column of texts that belong to the inputs: completions of prompts '
    '(causal_lm), captions of images (contrast)',
  )
  group_column: str = opt('', 'column of user or writer ids, for natural')
  image_size: int = opt(
    0,
    'resize images to this side (0: as they are, or as the checkpoint wants '
    'them)',
    low=0,
    high=4096,
  )
  max_tokens: int = opt(
    128,
    'T: cut texts to so many tokens, and to what the model takes',
    low=2,
    high=1 << 20,
  )
  pack: bool = opt(
    False, 'put several whole texts into a row of max_tokens (causal_lm)'
  )
  mask_fraction: float = opt(
    0.15, 'part of the tokens to hide (masked_lm)', above=0.0, high=0.9
  )
  masks: str = opt(
    'once',
    'masked_lm: tokens are hidden once for the whole run (as for BERT), or '
    'anew each time that a row is trained on',
    choices=('once', 'fresh'),
  )
  max_rows: int = opt(0, 'use at most this many rows a split (0: all)', low=0)
  public_fraction: float = opt(
    0.3,
    'part of the rows that the server pre-trains on (set it to 0 where it does '
    'not: --pretrain.mode)',
    low=0.0,
    high=0.95,
  )
  public_classes: str = opt(
    '', 'comma-separated labels: their rows are public, the others private'
  )
  novel_classes: str = opt(
    '',
    'comma-separated labels that nobody trains on: their rows are in the '
    'pooled test set alone (base-to-novel evaluation)',
  )
  novel_fraction: float = opt(
    0.0,
    'or instead: the last part of the classes (0.5: the second half)',
    low=0.0,
    high=0.95,
  )
  public_shift: str = opt(
    '',
    'domain shift of the public images (digits default: dim)',
    choices=('', 'none', 'rotate', 'transpose', 'flip', 'invert', 'dim'),
  )
  shift: str = opt(
    '',
    'feature shift: how the images of clients differ (rotate: by quarter '
    'turns; invert: some inverted; blur: three strengths; color: channels '
    'exchanged; mixed: as they are, turned, inverted, or blurred); public '
    'images stay, pooled ones are of all kinds; ours',
    choices=('', 'rotate', 'invert', 'blur', 'color', 'mixed'),
  )
  shift_groups: int = opt(
    0,
    'clients are dealt to so many groups of like images (0: each draws by '
    'itself)',
    low=0,
    high=1 << 16,
  )
  concept_groups: int = opt(
    0,
    'concept shift: clients are dealt to so many groups, each of which but the '
    'first means other classes by the labels, a permutation (0: none)',
    low=0,
    high=1 << 16,
  )
  synthetic_rows: int = opt(
    4000, 'rows of the synthetic source', low=1, high=1 << 31
  )
  synthetic_classes: int = opt(
    10, 'classes of the synthetic source', low=2, high=1 << 20
  )

  def check(self) -> None:
    """Raises `ValueError` for groups of clients that do not differ."""
    if self.shift_groups and not self.shift:
      raise ValueError(
        f'--data.shift_groups={self.shift_groups} says nothing without '
        '--data.shift. Give it, or leave this out.'
      )
    for name in ('shift_groups', 'concept_groups'):
      if getattr(self, name) == 1:
        raise ValueError(
          f'--data.{name}=1 is one group, which changes nothing; allowed: 0, '
          'or 2 and more. Leave it out.'
        )


@dataclasses.dataclass(frozen=True)
class PartitionConfig:
  name: str = opt(
    '',
    'how rows are dealt to clients (digits default: classes; of other data: '
    'dirichlet)',
    choices=('', 'iid', 'dirichlet', 'classes', 'quantity', 'natural'),
    plugins='partitions',
  )
  num_clients: int = opt(30, 'clients that train', low=1, high=1 << 30)
  unseen_clients: int = opt(
    4, 'further clients that never train', low=0, high=1 << 30
  )
  alpha: float = opt(
    0.3, 'Dirichlet concentration of label skew', above=0.0, high=1e9
  )
  classes_per_client: int = opt(3, 'for partition.name=classes', low=1)
  sigma: float = opt(1.0, 'lognormal sigma, for quantity', low=0.0, high=100.0)
  min_rows: int = opt(10, 'fewest rows of a client (at least 3)', low=3)
  validation: float = opt(
    0.15, "share of a client's rows for validation", above=0.0, high=0.8
  )
  test: float = opt(
    0.25, "share of a client's rows for test", above=0.0, high=0.8
  )
  save: str = opt('', 'write the partition to this .npz file')
  load: str = opt('', 'read the partition from this .npz file')

  def check(self) -> None:
    """Raises `ValueError` if no rows are left to train on."""
    total = self.validation + self.test
    if total >= 1.0:
      raise ValueError(
        f'partition.validation + partition.test = {total:g} leaves no training '
        'rows; allowed: a sum under 1. Lower one of them.'
      )


@dataclasses.dataclass(frozen=True)
class CohortConfig:
  size: int = opt(10, 'clients sampled per round', low=1)
  sampling: str = opt(
    'fixed',
    'how clients are sampled: fixed (always cohort.size of all), poisson (each '
    'by itself, so that cohort.size is the mean), cyclic (so, of the group '
    'whose turn it is), min_separation (always cohort.size of that group)',
    choices=('fixed', 'poisson', 'cyclic', 'min_separation'),
    plugins='samplers',
  )
  cap: int = opt(
    0,
    'most clients of a cohort of random size (0: six standard deviations over '
    'its mean)',
    low=0,
  )
  groups: int = opt(
    1,
    'groups that take turns: a client is in one round of so many at most (for '
    'cyclic, min_separation)',
    low=1,
    high=1 << 20,
  )
  dropout: float = opt(
    0.0,
    'chance that a sampled client is lost: it receives the model and trains, '
    'and nothing of it arrives',
    low=0.0,
    high=1.0,
  )
