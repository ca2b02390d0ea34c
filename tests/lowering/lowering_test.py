"""Every program, of every family of models, as accelerators will get it.

Nothing is compiled and nothing runs, so no accelerator is needed: a program is
traced with the attention that the device would choose, lowered for its
platform, and read.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import token_logits, tree
from tests.lowering import programs
from tests.lowering.accelerators import ACCELERATORS, lowered, pretend
from tests.lowering.programs import Case

FLASH = {'__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'}
# What a program may call that is no StableHLO. Nothing here calls the host.
CALLS = {'turing': set(), 'ampere': FLASH, 'tpu': set()}
TYPES = (  # of products, and of what is stored
  ('bfloat16', 'float32'),
  ('bfloat16', 'int8'),
  ('bfloat16', 'bfloat16'),
  ('float32', 'float32'),
)
FORMS = tuple(
  itertools.product((True, False), (programs.ALL, programs.TOP))
)  # whether tokens are odd, the plan
RUNS = tuple(
  itertools.product(programs.CONFIGS, programs.KINDS, (1, 2))
)  # family, kind, stage


ALIKE = {'begin', 'finish', 'spread-finish'}  # in all families
SELDOM = {'spread', 'pretrain', 'server'}  # differ little between families


def some_cases():
  """The programs of families and stages, types and forms in turn."""
  turn = itertools.cycle(itertools.product(FORMS, TYPES))
  for run in RUNS:
    if run[1] in ALIKE and run[0] != 'vit':
      continue
    if run[1] in SELDOM and run[0] not in ('vit', 'llama'):
      continue
    form, types = next(turn)
    yield Case(*run, *types, *form)


def all_cases():
  """Those that run each round in all types and forms, the others in types."""
  turn = itertools.cycle(FORMS)
  for run, types in itertools.product(RUNS, TYPES):
    each_round = run[1] in ('train', 'evaluate')
    for form in FORMS if each_round else [next(turn)]:
      yield Case(*run, *types, *form)


SOME = list(some_cases())
CASES = SOME + [
  pytest.param(case, marks=pytest.mark.slow)
  for case in all_cases()
  if case not in SOME
]


def text(found: programs.Program, accelerator: str) -> str:
  where = ACCELERATORS[accelerator]
  with pytest.MonkeyPatch.context() as patch:
    pretend(patch, where)
    return lowered(found.function, found.args, where)


def devices(case: Case):
  """Accelerators that get different programs: Hopper differs from Ampere in
  the widest head alone, and in float32 all attention is XLA's."""
  return ('ampere', 'tpu') if case.dtype == 'bfloat16' else ('turing', 'tpu')


Operand = tuple[tuple[int, ...], str]  # its axes, its type


def dots(text: str) -> list[tuple[Operand, Operand]]:
  """The operands of all matrix products."""

  def operand(written: str) -> Operand:
    *axes, kind = written.split('x')
    return tuple(map(int, axes)), kind

  found = re.findall(
    r'stablehlo\.dot_general .*: \(tensor<(\S+)>, tensor<(\S+)>\) ->', text
  )
  assert len(found) == text.count('stablehlo.dot_general')
  assert 'stablehlo.convolution' not in text
  return [(operand(a), operand(b)) for a, b in found]


def kernels(frozen) -> set[tuple[int, int]]:
  """[d_in, d_out] of what a frozen model multiplies by."""
  found = set()
  for path, x in jax.tree_util.tree_leaves_with_path(frozen.get('base', {})):
    name = tree.path_name(path)
    if name.split('/')[-1] in ('kernel', 'word', 'readout', 'projection'):
      wide = x.shape[:-1] if name.startswith('stem') else x.shape[-2:-1]
      found.add((int(np.prod(wide)), x.shape[-1]))
  return found


def repeated(text: str, frozen) -> list[tuple[int, ...]]:
  """Operands that are a frozen kernel of each client."""
  wanted = [Counter((programs.CLIENTS, *kernel)) for kernel in kernels(frozen)]
  return [
    axes
    for pair in dots(text)
    for axes, _ in pair
    if any(
      not shape - Counter(axes)
      and set(axes) <= {*shape, programs.BLOCKS, 1}
      and len(axes) <= 4
      for shape in wanted
    )
  ]


def check_kernels(case: Case, text: str, frozen) -> None:
  """The claim that the engine lives by: a frozen model is there once, and all
  clients of a chunk are multiplied by it at once."""
  assert not repeated(text, frozen)
  if case.kind in ('train', 'spread', 'evaluate'):
    blocks = {'base': {'blocks': frozen['base']['blocks']}}
    seen = {axes for pair in dots(text) for axes, _ in pair}
    assert kernels(blocks) <= seen
    # Clients have LoRA of their own.
    own = {programs.CLIENTS, programs.WIDTH, programs.RANK}
    if case.kind != 'evaluate' or case.stage == 2:
      assert any(own <= set(axes) for axes in seen)


def check_calls(case: Case, text: str, accelerator: str) -> None:
  """Nothing is called that is not in the table, so nothing of the host."""
  found = set(re.findall(r'custom_call @([\w$.]+)', text))
  assert found <= CALLS[accelerator]
  if accelerator == 'ampere' and case.kind in ('train', 'spread'):
    assert found == FLASH


def check_rows(case: Case, text: str) -> None:
  """Of columns that a prefix has made of raw ones, the raw ones are left
  alone: large images are not read for nothing."""
  if case.plan.boundary and case.kind in ('train', 'spread', 'evaluate'):
    assert not re.search(r'gather.*: \(tensor<[\dx]+ui8>', text)


def loops(text: str) -> list[bool]:
  """Of every loop of a program: whether its length is a constant in it. That
  of another is known to the device alone, which tells the host at every turn
  whether there is one more, and waits."""
  found = re.findall(
    r'stablehlo\.while.*?\n\s*cond \{(.*?)\} do \{', text, re.DOTALL
  )
  assert len(found) == text.count('stablehlo.while')
  return [
    bool(
      re.search(
        r'(%\w+) = stablehlo\.constant dense<\d+> .*\s+'
        r'(%\w+) = stablehlo\.compare LT, %iterArg\w*, \1, SIGNED .*\s+'
        r'stablehlo\.return \2 ',
        condition,
      )
    )
    for condition in found
  ]


def float32_products(case: Case, accelerator: str) -> set[frozenset[int]]:
  """Products that are in float32 where the model computes in bfloat16: the
  lengths of their axes, but for clients, rows, steps and tokens."""
  p = programs
  depth = sum(case.plan.active)
  width = 2 * p.PROJECTED if case.family == 'clip' else p.WIDTH
  tables = [
    (p.WIDTH, p.CLASSES),  # the head,
    (width, width // 4),  # the gate, down and up,
    (width, 2),  # and its weights of two experts;
    # What averages of LoRA miss, of grouped heads too; at a client, at the
    # server.
    *((n, p.WIDTH, p.RANK) for n in (depth, p.BLOCKS)),
    *((n, p.WIDTH, p.RANK, p.PER_HEAD) for n in (depth, p.BLOCKS)),
    (p.WIDTH, p.PROJECTED),  # CLIP's projections,
    (p.PROJECTED,),  # and its contrast.
  ]
  if accelerator != 'ampere':
    # JAX's gradient of scores; a TPU multiplies float32 in bfloat16 anyway.
    tables.append((p.HEADS, p.PER_HEAD))
  return {frozenset(table) for table in tables}


def check_types(case: Case, text: str, accelerator: str) -> None:
  """Products are in bfloat16, but for those in the table."""
  p = programs
  many = {p.CLIENTS, p.BATCH, p.ROWS, p.HELD, p.STEPS, 1}
  many |= {*p.TOKENS.values(), *p.IMAGE_TOKENS.values()}
  for first, second in dots(text):
    if 'f32' in (first[1], second[1]):
      lengths = frozenset({*first[0], *second[0]} - many)
      assert lengths in float32_products(case, accelerator), (first, second)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_a_program_as_accelerators_get_it(case):
  found = programs.program(case)
  for accelerator in devices(case):
    made = text(found, accelerator)
    check_kernels(case, made, found.frozen)
    check_calls(case, made, accelerator)
    check_rows(case, made)
    assert all(loops(made))
    if case.dtype == 'bfloat16':
      check_types(case, made, accelerator)


@pytest.mark.parametrize(
  'storage', ['int8', pytest.param('float32', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', ['train', 'evaluate'])
@pytest.mark.parametrize(
  'family', ['llama', pytest.param('bert', marks=pytest.mark.slow)]
)
def test_so_where_logits_are_read_by_chunks(family, kind, storage, monkeypatch):
  """The table is a frozen kernel of every chunk."""
  case = Case(family, kind, 2, 'bfloat16', storage)
  words = 4 * programs.WORDS
  monkeypatch.setattr(token_logits, 'CHUNK_BYTES', 2 * 3 * words)
  program = programs.program(case)
  for accelerator in ('ampere', 'tpu'):
    found = text(program, accelerator)
    check_kernels(case, found, program.frozen)
    check_calls(case, found, accelerator)
    check_types(case, found, accelerator)
    many = programs.TOKENS[case.odd] * programs.WORDS
    assert not [
      axes
      for axes in re.findall(r'tensor<([\dx]+)xf32>', found)
      if programs.WORDS in map(int, axes.split('x'))
      and programs.CLIENTS in map(int, axes.split('x'))
      and np.prod([int(x) for x in axes.split('x')]) >= programs.CLIENTS * many
    ]


def test_a_kernel_that_is_repeated_is_found():
  base = {'blocks': {'up': {'kernel': jnp.zeros((4, 32, 48))}}}
  x = jax.ShapeDtypeStruct((programs.CLIENTS, 5, 32), jnp.float32)
  kernel = base['blocks']['up']['kernel'][0]

  def right(x):
    return jax.vmap(lambda x: x @ kernel)(x)

  def wrong(x):
    many = jnp.broadcast_to(kernel, (programs.CLIENTS, 32, 48))
    return jax.vmap(jnp.matmul)(x, many + 0 * x[:, :1, :1])

  for accelerator in ACCELERATORS.values():
    assert not repeated(lowered(right, (x,), accelerator), {'base': base})
    assert repeated(lowered(wrong, (x,), accelerator), {'base': base})


def test_a_loop_of_unknown_length_is_found():
  x, count = programs.shape(4, dtype='float32'), programs.shape()

  def known(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=5)[0]

  def unknown(x, count):
    return known(jax.lax.fori_loop(0, count, lambda i, x: x + i, x))

  for accelerator in ACCELERATORS.values():
    assert loops(lowered(known, (x,), accelerator)) == [True]
    both = loops(lowered(unknown, (x, count), accelerator))
    assert sorted(both) == [False, True]
