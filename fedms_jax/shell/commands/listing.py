"""`fedms list`: what can be chosen, with a line and the paper each."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fedms_jax.shell import catalog, commands, flags, plugins
from fedms_jax.shell import config as config_lib

Entry = tuple[str, str]  # one line, and the paper or '-'

SCHEDULES: dict[str, Entry] = {
  'queue': (
    'more blocks when the range of the latest scores is small',
    'arXiv 2312.15926 (the form is ours)',
  ),
  'queue_std': (
    'more blocks when the standard deviation of the latest scores is small; '
    'with --schedule.score=train_loss the queue of FeMAM',
    'FeMAM',
  ),
  'fixed': ('more blocks every --schedule.interval rounds', '-'),
  'linear': ('evenly, from --schedule.start to all', '-'),
  'geometric': ('twice as many every --schedule.interval rounds', '-'),
  'dense': (
    'all blocks from the start; with --schedule.budgets the depth from the '
    'output that a device can afford',
    'arXiv 2506.01001 (FedQuad)',
  ),
  'random': ('more blocks at random times', '-'),
  'manual': ('the depths of --schedule.depths', '-'),
}
ORDERS: dict[str, Entry] = {
  'top_down': ('nearest to the output first', 'arXiv 2312.15926'),
  'bottom_up': ('nearest to the input first', '-'),
  'random': ('in one random order', '-'),
  'importance': ('by the norm of the first gradient', '-'),
  'allocation': (
    'drawn for each client and round; --schedule.shape says how likely each is',
    'arXiv 2311.11227 (FedRA), 2506.12213 (Fed-HeLLo)',
  ),
  'balanced': (
    'by importance and even use over the cohort, weighed by --schedule.balance',
    'after arXiv 2411.11912 (F3OCUS)',
  ),
  'dropout': (
    'each by chance, for each client and round',
    'arXiv 2503.10217 (DropPEFT)',
  ),
  'f3ocus': (
    "by each client's own scores in each round, and even use over the cohort",
    'arXiv 2411.11912 (F3OCUS)',
  ),
  'window': ('all but a sliding window', 'arXiv 2307.06933 (FFDAPT)'),
}
PARTITIONS: dict[str, Entry] = {
  'iid': ('equal sizes, random rows', '-'),
  'dirichlet': (
    'each class in shares of Dirichlet(--partition.alpha); without a flag',
    'arXiv 2102.02079',
  ),
  'classes': (
    '--partition.classes_per_client classes for each client; of digits without '
    'a flag',
    'arXiv 1602.05629',
  ),
  'quantity': ('random rows, lognormal sizes', '-'),
  'natural': ('a client is a user, writer or speaker of the data', '-'),
}
MODELS: dict[str, Entry] = {
  'vit': ('built in, as wide and deep as --model says', 'arXiv 2010.11929'),
  'clip': ('checkpoint: image and text towers', 'arXiv 2103.00020'),
  'clip_vision_model, clip_text_model': (
    "checkpoint: one of CLIP's towers",
    'arXiv 2103.00020',
  ),
  'siglip': ('checkpoint: image and text towers', 'arXiv 2303.15343'),
  'siglip_vision_model, siglip_text_model': (
    "checkpoint: one of SigLIP's towers",
    'arXiv 2303.15343',
  ),
  'vit, deit': ('checkpoint: images', 'arXiv 2010.11929, 2012.12877'),
  'dinov2, dinov2_with_registers': (
    'checkpoint: images',
    'arXiv 2304.07193, 2309.16588',
  ),
  'bert': ('checkpoint: texts, class prompts, too', 'arXiv 1810.04805'),
  'roberta, xlm-roberta': (
    'checkpoint: texts, class prompts, too',
    'arXiv 1907.11692, 1911.02116',
  ),
  'distilbert': (
    'checkpoint: texts, class prompts, too',
    'arXiv 1910.01108',
  ),
  'gpt2': ('checkpoint: next tokens', '-'),
  'llama': ('checkpoint: next tokens', 'arXiv 2302.13971'),
  'mistral': ('checkpoint: next tokens', 'arXiv 2310.06825'),
  'gemma2, gemma3_text': (
    'checkpoint: next tokens',
    'arXiv 2408.00118, 2503.19786',
  ),
  'phi3': ('checkpoint: next tokens', 'arXiv 2404.14219, 2503.01743'),
  'qwen2, qwen3': (
    'checkpoint: next tokens',
    'arXiv 2407.10671, 2505.09388',
  ),
}
NEW_MODELS: dict[str, Entry] = {
  'gpt': ('next tokens, in the layout of GPT-2', '-'),
  'llama': ('next tokens', 'arXiv 2302.13971'),
  'bert': ('masked tokens', 'arXiv 1810.04805'),
}


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the lists, or the one that is named."""
  wanted, words = commands.topic(words)
  flags.parse_command(words, extra)
  print(text(wanted))
  return 0


def text(wanted: str = '') -> str:
  """All lists, one after another. wanted: a word of the title of a list,
  which is then given alone.

  Raises:
    ValueError: no list begins so.
  """
  methods = {k: (m.summary, m.paper) for k, m in catalog.METHODS.items()}
  lists = {
    'algorithms (--algorithm.name)': methods,
    'schedules (--schedule)': SCHEDULES,
    'orders (--schedule.order)': ORDERS,
    'partitions (--partition.name)': PARTITIONS,
    'metrics (--eval.metrics, --schedule.score)': (
      _metrics() if wanted in ('', 'metrics') else {}
    ),
    'models (--model.name: vit, or a folder or Hub id)': MODELS,
    'text models that begin with random weights (--model.name)': NEW_MODELS,
  }
  lists['presets (--preset)'] = presets(flags.PRESETS)
  lists |= {
    f'{group} of plugins': _of_plugins(group)
    for group in plugins.GROUPS
    if any(plugins.names(group))
  }
  if wanted:
    return _one(lists, wanted)
  blocks = [f'{title}\n{_lines(found)}' for title, found in lists.items()]
  default = config_lib.Config()
  return '\n\n'.join(
    [
      *blocks,
      f'Without a flag: {default.algorithm.name}, {default.schedule.name}, '
      f'{default.schedule.order}, {default.model.name}.',
    ]
  )


def _one(lists: Mapping[str, Mapping[str, Entry]], wanted: str) -> str:
  """The lists that have this word in their title."""
  found = [
    f'{title}\n{_lines(entries)}'
    for title, entries in lists.items()
    if wanted in title.partition(' (')[0].split()
  ]
  if not found:
    names = dict.fromkeys(title.split()[0] for title in lists)
    raise ValueError(
      f'there is no list of {wanted!r}. Lists: {", ".join(names)}.'
    )
  return '\n\n'.join(found)


def _of_plugins(group: str) -> dict[str, Entry]:
  """What plugins add to a group: the summary of a method, or the first line of
  what else documents itself."""
  found = {}
  for name in plugins.names(group):
    value = plugins.find(group, name)
    if group == 'algorithms' and catalog.known(name):
      found[name] = (value.summary, value.paper)
      continue
    own = '__doc__' in vars(type(value)) and not callable(value)
    lines = ('' if own else value.__doc__ or '').strip().splitlines()
    found[name] = (lines[0] if lines else type(value).__name__, '-')
  return found


def _metrics() -> dict[str, Entry]:
  """The metrics, with the tasks that have them."""
  from fedms_jax.models import measures  # lazy: it starts JAX

  found = {
    name: (f'{entry.help} (of {", ".join(entry.kinds)})', '-')
    for name, entry in measures.ALL.items()
  }
  return found | {'top<k>': ('the right one is among k (of classes)', '-')}


def presets(folder: pathlib.Path) -> dict[str, Entry]:
  """The first sentence of the comment that each flag file begins with."""
  found = {}
  for path in sorted(folder.glob('*.flags')):
    lines = path.read_text(encoding='utf-8').splitlines()
    count = next(i for i, x in enumerate([*lines, '']) if not x.startswith('#'))
    comment = ' '.join(x.lstrip('# ') for x in lines[:count])
    found[path.stem] = (comment.partition('. ')[0].rstrip('.'), '-')
  return found


def _lines(entries: Mapping[str, Entry]) -> str:
  width = max(map(len, entries))
  out = []
  for name, (summary, paper) in entries.items():
    line = summary if paper == '-' else f'{summary} [{paper}]'
    out += textwrap.wrap(
      line,
      80,
      initial_indent=f'  {name.ljust(width)}  ',
      subsequent_indent=' ' * (width + 4),
    )
  return '\n'.join(out)
