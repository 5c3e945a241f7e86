"""Sixteen float32 as one value in functions that numba compiles for the processor at hand.

Compiled functions are told addresses, because numpy knows no bfloat16. Written with whole vectors they need nobody to
find out that what they write is not what they read; a processor of narrower vectors takes several for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

Function = TypeVar("Function", bound=Callable[..., Any])
LANES = 16
log = logging.getLogger(__name__)
_SOURCES = ("compiled.py", "matrices.py", "*_products.py")
"""All files of compiled functions, in this folder."""


def compiled(function: Function) -> Function:
    """The function as machine code, a part of whichever compiled function calls it."""
    return cast(Function, numba.njit(function, nogil=True, error_model="numpy"))


def kept(function: Function) -> Function:
    """As `compiled`, to be called from Python without its lock; made at the first call, and kept on disk for others.

    In NUMBA_CACHE_DIR, or the package's folder, or the user's cache; where none can be written, nowhere.
    """
    made: Any = compiled(function)
    with contextlib.suppress(RuntimeError):
        made._cache = _Cache(made.py_func)
    return cast(Function, made)


class _Cache(FunctionCache):
    """Files of names that no other text of the sources, and no other kind of processor, has.

    numba would look at the function's own file alone, and number its files anew for a new text, so that a process which
    is stopped between its two files would leave new names for old code.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        files = sorted(file for pattern in _SOURCES for file in Path(__file__).parent.glob(pattern))
        parts = [file.read_bytes() for file in files]
        parts += [binding.get_host_cpu_name().encode(), binding.get_host_cpu_features().flatten().encode()]
        stamp = hashlib.sha256(b"\0".join(parts)).hexdigest()
        self._cache_file = IndexDataCacheFile(self._cache_path, f"{self._impl.filename_base}-{stamp[:16]}", stamp)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """None, and it is made anew, where what is on disk cannot be read or is half written."""
        try:
            return super().load_overload(signature, target)
        except Exception as error:
            log.warning("compiled code in %s cannot be read and is made anew: %s", self._cache_path, error)
            # Else its index could not be read when the new one is added.
            with contextlib.suppress(OSError):
                self._cache_file.flush()
            return None

    def save_overload(self, signature: Any, made: Any) -> None:
        """Nothing where that cannot be done, as on a full disk: what was made serves this process."""
        try:
            super().save_overload(signature, made)
        except Exception as error:
            log.warning("compiled code cannot be kept in %s: %s", self._cache_path, error)


class Sixteen(types.Type):
    """The type of such a value."""

    def __init__(self) -> None:
        super().__init__(name="Sixteen")


_FLOAT, _WORD, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(16)
_FLOATS, _WORDS, _HALVES = (ir.VectorType(each, LANES) for each in (_FLOAT, _WORD, _HALF))


@register_model(Sixteen)
class _SixteenModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_SIXTEEN, _ONE, _INT = Sixteen(), types.float32, types.int64


def _operation(result: Any, kinds: tuple[Any, ...], generate: Callable[..., Any]) -> Any:
    """A function of compiled code whose instructions `generate` builds from (builder, what it is given)."""

    made = result(*kinds), lambda _, builder, __, given: generate(builder, *given)
    # numba asks a function of as many arguments.
    of_arity = (lambda _: made, lambda _, a: made, lambda _, a, b: made, lambda _, a, b, c: made)
    return intrinsic(of_arity[len(kinds)])


def _words(value: int) -> Any:
    return ir.Constant(_WORDS, [ir.Constant(_WORD, value)] * LANES)


def _floats(value: float) -> Any:
    return ir.Constant(_FLOATS, [ir.Constant(_FLOAT, value)] * LANES)


def _call(builder: Any, name: str, result: Any, *given: Any, fastmath: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [each.type for each in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given, fastmath=fastmath)


def _of_lanes(builder: Any, name: str, *given: Any) -> Any:
    return _call(builder, f"llvm.{name}.v{LANES}f32", _FLOATS, *given)


def _spread(builder: Any, value: Any, kind: Any = _FLOATS) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_WORDS, None))


def _place(builder: Any, address: Any, count: Any, kind: Any) -> tuple[Any, Any, Any]:
    """Pointer, alignment and the mask of the first `count` lanes; LLVM knows a mask of all for none at all."""
    numbers = ir.Constant(_WORDS, [ir.Constant(_WORD, i) for i in range(LANES)])
    mask = builder.icmp_signed("<", numbers, _spread(builder, builder.trunc(count, _WORD), _WORDS))
    return builder.inttoptr(address, kind.as_pointer()), ir.Constant(_WORD, 2 if kind is _HALVES else 4), mask


def _read(builder: Any, address: Any, count: Any, kind: Any = _FLOATS, beyond: Any = None) -> Any:
    name = f"llvm.masked.load.v{LANES}{'i16' if kind is _HALVES else 'f32'}.p0"
    return _call(builder, name, kind, *_place(builder, address, count, kind), beyond or ir.Constant(kind, None))


def _write(builder: Any, value: Any, address: Any, count: Any, kind: Any = _FLOATS) -> None:
    name = f"llvm.masked.store.v{LANES}{'i16' if kind is _HALVES else 'f32'}.p0"
    _call(builder, name, ir.VoidType(), value, *_place(builder, address, count, kind))


def _widen(builder: Any, address: Any, count: Any) -> Any:
    words = builder.zext(_read(builder, address, count, _HALVES), _WORDS)
    return builder.bitcast(builder.shl(words, _words(16)), _FLOATS)


def _narrow(builder: Any, value: Any, address: Any, count: Any) -> None:
    """To the nearest bfloat16, the even one between two; what is no number stays none."""
    words = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(words, _words(16)), _words(1))
    nearest = builder.lshr(builder.add(builder.add(words, _words(0x7FFF)), odd), _words(16))
    number = builder.fcmp_ordered("ord", value, value)
    halves = builder.trunc(builder.select(number, nearest, _words(0x7FC0)), _HALVES)
    _write(builder, halves, address, count, _HALVES)


def _total(builder: Any, value: Any) -> Any:
    name, zero = f"llvm.vector.reduce.fadd.v{LANES}f32", ir.Constant(_FLOAT, 0.0)
    return _call(builder, name, _FLOAT, zero, value, fastmath=("reassoc",))


_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _exponential(builder: Any, value: Any) -> Any:
    x = _of_lanes(builder, "minimum", value, _floats(88.0))
    power = _of_lanes(builder, "rint", builder.fmul(x, _floats(math.log2(math.e))))
    # The logarithm of 2 in two parts, so that the first product is exact.
    rest = _of_lanes(builder, "fmuladd", power, _floats(-0.693359375), x)
    rest = _of_lanes(builder, "fmuladd", power, _floats(2.12194440e-4), rest)
    y = _floats(_POLYNOMIAL[0])
    for factor in _POLYNOMIAL[1:]:
        y = _of_lanes(builder, "fmuladd", y, rest, _floats(factor))
    y = builder.fadd(_of_lanes(builder, "fmuladd", y, builder.fmul(rest, rest), rest), _floats(1.0))
    whole = _call(builder, f"llvm.fptosi.sat.v{LANES}i32.v{LANES}f32", _WORDS, power)
    y = builder.bitcast(builder.add(builder.bitcast(y, _WORDS), builder.shl(whole, _words(23))), _FLOATS)
    return builder.select(builder.fcmp_ordered("<", x, _floats(-87.0)), _floats(0.0), y)


def _get(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _FLOAT.as_pointer()), align=4)


def _put(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, _FLOAT.as_pointer()), align=4)


get = _operation(_ONE, (_INT,), _get)
"""The float32 that lies at an address."""
put = _operation(types.void, (_ONE, _INT), _put)
"""Writes a float32 to an address."""
zeros = _operation(_SIXTEEN, (), lambda builder: _floats(0.0))
spread = _operation(_SIXTEEN, (_ONE,), _spread)
"""A float32 in all lanes."""
repeat = _operation(_SIXTEEN, (_INT,), lambda builder, address: _spread(builder, _get(builder, address)))
"""The float32 that lies at an address, in all lanes."""
read = _operation(_SIXTEEN, (_INT, _INT), _read)
"""From an address on so many float32, sixteen at most, and zeros; of less than one nothing is read."""
read_least = _operation(
    _SIXTEEN, (_INT, _INT), lambda builder, address, count: _read(builder, address, count, _FLOATS, _floats(-math.inf))
)
"""As `read`, with minus infinity in place of zeros."""
write = _operation(types.void, (_SIXTEEN, _INT, _INT), _write)
"""The values, to an address, so many."""
widen = _operation(_SIXTEEN, (_INT, _INT), _widen)
"""As `read`, of bfloat16."""
narrow = _operation(types.void, (_SIXTEEN, _INT, _INT), _narrow)
"""As `write`, rounded to bfloat16."""
fused = _operation(_SIXTEEN, (_SIXTEEN,) * 3, lambda builder, *given: _of_lanes(builder, "fmuladd", *given))
"""a b + c, of (a, b, c)."""
times = _operation(_SIXTEEN, (_SIXTEEN,) * 2, lambda builder, a, b: builder.fmul(a, b))
plus = _operation(_SIXTEEN, (_SIXTEEN,) * 2, lambda builder, a, b: builder.fadd(a, b))
larger = _operation(_SIXTEEN, (_SIXTEEN,) * 2, lambda builder, *given: _of_lanes(builder, "maximum", *given))
"""Of two, lane by lane; what is no number stays none."""
total = _operation(_ONE, (_SIXTEEN,), _total)
"""The sum of all lanes, a float32."""
largest = _operation(
    _ONE, (_SIXTEEN,), lambda builder, a: _call(builder, f"llvm.vector.reduce.fmaximum.v{LANES}f32", _FLOAT, a)
)
"""Of all lanes, a float32; no number where one is none."""
exponential = _operation(_SIXTEEN, (_SIXTEEN,), _exponential)
"""e to the power of each lane, 0 below -87 and e^88 above 88, else to two units in the last place or so.

By a power of two and the polynomial of expf in Cephes (Moshier, 1992).
"""
