"""exp and log of float32 from additions and multiplications only, so that NumPy and XLA agree to the last bit.

Their own differ in the last bits from each other and from one processor to the next. Errors here are below 2e-7
relative (exp) and below 2e-7 of max(1, |log x|) (log).
"""

import math

import numpy as np

from jaxft.merging.kernels.namespace import ArrayLike, is_numpy, namespace, rounded

_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOG2_E = np.float32(1.44269504)


def exp(x: ArrayLike) -> ArrayLike:
  """`e ** x` for -87 <= x <= 88; clipped to that range."""
  xp = namespace(x)
  x = xp.clip(x, np.float32(-87), np.float32(88))
  n = xp.floor(rounded(x * _LOG2_E) + np.float32(0.5))
  r = x - rounded(n * _LN2_HIGH) - rounded(n * _LN2_LOW)
  return rounded(polynomial(r, [1 / math.factorial(k) for k in range(8)]) * _power_of_two(n))


def log(x: ArrayLike) -> ArrayLike:
  """The natural logarithm of positive normal numbers."""
  xp = namespace(x)
  bits = _bits(x, np.int32)
  exponent = (bits >> 23) - 127
  mantissa = _bits((bits & 0x007FFFFF) | 0x3F800000, np.float32)  # in [1, 2)
  large = mantissa > np.float32(1.41421356)
  mantissa = xp.where(large, mantissa * np.float32(0.5), mantissa)
  n = (exponent + large).astype(np.float32)
  s = (mantissa - 1) / (mantissa + 1)
  square = rounded(s * s)
  series = polynomial(square, [2 / (2 * k + 1) for k in range(5)])
  return rounded(n * _LN2_HIGH) + (rounded(s * series) + rounded(n * _LN2_LOW))


def polynomial(x: ArrayLike, coefficients: list[float]) -> ArrayLike:
  """`sum_k c_k x ** k`, by Horner's rule."""
  result = np.float32(coefficients[-1])
  for c in reversed(coefficients[:-1]):
    result = rounded(result * x) + np.float32(c)
  return result


def _power_of_two(n: ArrayLike) -> ArrayLike:
  return _bits((n.astype(np.int32) + 127) << 23, np.float32)


def _bits(x: ArrayLike, dtype: type) -> ArrayLike:
  if is_numpy(x):
    return x.view(dtype)
  import jax

  return jax.lax.bitcast_convert_type(x, dtype)
