"""How the project's programs are compiled.

XLA:CPU spends seconds on each program, most of them in LLVM, and a schedule
asks for new programs at every depth. Its matrix products are library calls,
so less optimization costs little: measured on a step of the default model,
a third less time to compile at the same milliseconds per step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

# light: programs that run so seldom, or do so little, that nothing pays.
_MEDIUM = {
  'xla_backend_optimization_level': 1,
  'xla_cpu_use_fusion_emitters': False,
}
_LIGHT = _MEDIUM | {'xla_backend_optimization_level': 0}


_left_to_xla: list[bool] = []


def leave_to_xla() -> None:
  """Compiles what comes by XLA's own flags alone, as when a user has set
  them; call it before the first program runs."""
  _left_to_xla.append(True)


def jit(
  *,
  static: tuple[int, ...] = (),
  donate: tuple[int, ...] = (),
  light: bool = False,
) -> Callable[[Callable], Jitted]:
  """`jax.jit` as a decorator, with the options that suit the back-end."""
  return lambda function: Jitted(function, static, donate, light)


class Jitted:
  """A function that is compiled when it is called.

  The back-end is looked up at the first call: looking it up at import would
  start JAX before `jax.distributed` can. Within another program it is a part
  of that one, whose options hold: JAX refuses options of an inner program.
  """

  def __init__(self, function: Callable, static, donate, light: bool):
    functools.update_wrapper(self, function)

    @functools.cache
    def program():
      return jax.jit(
        function,
        static_argnums=static,
        donate_argnums=donate,
        compiler_options=_options(light),
      )

    self.function = function
    self.program = program  # () -> what `jax.jit` gives

  def __call__(self, *args) -> Any:
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(args)):
      return self.function(*args)
    return self.program()(*args)


# A function, and what it is called with: arrays, or shapes to compile it for.
Program = tuple[Jitted, tuple]


@functools.cache
def _options(light: bool) -> dict[str, Any] | None:
  """Compiler options, None if this back-end or version takes none of ours."""
  if jax.default_backend() != 'cpu' or _left_to_xla:
    return None
  wanted = _LIGHT if light else _MEDIUM
  return {name: v for name, v in wanted.items() if _known(name, v)} or None


def _known(name: str, value: Any) -> bool:
  """Whether this version of XLA has the option; they come and go."""
  try:
    probe = jax.jit(lambda x: x, compiler_options={name: value})
    probe.lower(0.0).compile()
  except Exception:  # the type of the error changes with the version, too
    return False
  return True
