"""Denoisers that JAX cannot look into: Python functions, PyTorch modules, ONNX files.

Each becomes a network as `score_fn` takes it: a function of one image and perhaps a noise level. It
has values and no derivatives, which is all that the residual losses need.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from hos_jax.errors import NotDifferentiableError, UserError, missing_package, reason
from hos_jax.types import Array, check_function

_ONNX_TYPES = {
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@dataclasses.dataclass(frozen=True, eq=False)
class BlackBox:
    """A network that runs outside of JAX; made by `from_numpy`.

    Called with one image, and a time where it is told one; gives its prediction, of the image's
    shape. Under `vmap` the whole batch is one call of the function.

    Raises:
      NotDifferentiableError: where a derivative is asked for.
    """

    function: Callable[..., Any]

    def __call__(self, image: Array, *time: Array) -> Array:
        """The prediction for one image."""
        rank = image.ndim

        def on_host(image: Any, *time: Any) -> np.ndarray:
            # What is batched has further axes in front, the same of all arguments.
            # Copies: the function may write into what it gets, and these are buffers of JAX.
            image = np.array(image)
            images = image.reshape(-1, *image.shape[image.ndim - rank :])
            times = (np.array(one).reshape(-1) for one in time)
            answer = self.function(images, *times)
            if answer is None or isinstance(answer, (str, tuple, dict)):
                kind = type(answer).__name__
                raise ValueError(f"the function gives a {kind}, not an array of images")
            predicted = np.asarray(answer)
            if predicted.shape != images.shape:
                lacks_channel = (*predicted.shape, 1) == images.shape
                hint = ": give the channel's axis back, by reshape" if lacks_channel else ""
                raise ValueError(
                    f"the function gives {predicted.shape} of images {images.shape}{hint}"
                )
            if not np.issubdtype(predicted.dtype, np.floating):
                raise ValueError(
                    f"the function gives {predicted.dtype}, not floating-point numbers"
                )
            return predicted.reshape(image.shape).astype(image.dtype)

        result = jax.ShapeDtypeStruct(image.shape, image.dtype)
        options: Any = {"vmap_method": "broadcast_all"}

        def fill(_: Any, out: Any, *given: Any) -> None:
            np.asarray(out)[...] = on_host(*map(np.asarray, given))

        @jax.custom_jvp
        def call(*given: Array) -> Array:
            # On CPU `pure_callback` hands over arrays of JAX, whose values may wait for the very
            # threads that wait for the callback.
            return jax.lax.platform_dependent(
                *given,
                cpu=buffer_callback(fill, result, **options),
                default=functools.partial(jax.pure_callback, on_host, result, **options),
            )

        @call.defjvp
        def derivative(primals: Any, tangents: Any) -> Any:
            raise NotDifferentiableError(
                "this denoiser has values and no derivative: train a second-order head, which "
                "needs its values alone, or give it as a function of JAX arrays"
            )

        return call(image, *time)


def from_numpy(function: Callable[..., Any]) -> BlackBox:
    """A network from a Python function of NumPy arrays.

    Args:
      function: takes images (N, ...), and one time for each, (N,), where the network is told it;
        gives its predictions, of the images' shape. It must do the same with every image, however
        they are batched, and at every call. What it raises, and predictions of another shape, end
        the computation with JAX's runtime error. TypeError for what is no function.
    """
    check_function(function, "function is f(images)", "a function of NumPy arrays (N, ...)")
    return BlackBox(function)


def from_torch(module: Any, *, whole_times: bool = False) -> BlackBox:
    """A network from a `torch.nn.Module`, on the device where it is; see `from_numpy`.

    The module takes images, mostly (N, C, H, W), which is the layout "CHW" of `score_fn`, and times
    (N,) where it is told them, as tensors of its parameters' dtype; with `whole_times` these are
    int64, for a table of steps. Of a tuple, or of diffusers' output, the first tensor is the
    prediction. Load its weights with `weights_only=True`.

    Raises:
      UserError: if PyTorch is not loaded, so that this can be no module of it.
      ValueError: for a module in training mode, which would drop values at random or average over
        the batch.
    """
    # Whoever made the module has loaded PyTorch, which this package never does.
    torch: Any = sys.modules.get("torch")
    if torch is None:
        raise missing_package("a denoiser of PyTorch", "torch", "torch")
    if module.training:
        raise ValueError("the module is in training mode: call module.eval() first")
    known = next(module.parameters(), torch.zeros(()))

    def run(images: np.ndarray, *times: np.ndarray) -> np.ndarray:
        options: Any = {"dtype": known.dtype, "device": known.device}
        of_time = {**options, "dtype": torch.int64} if whole_times else options
        with torch.inference_mode():
            given = [torch.tensor(images, **options)]
            given += [torch.tensor(np.rint(t) if whole_times else t, **of_time) for t in times]
            found = module(*given)
            found = found[0] if isinstance(found, tuple) else getattr(found, "sample", found)
            return found.float().cpu().numpy()

    return from_numpy(run)


def from_onnx(path: str | os.PathLike) -> BlackBox:
    """A network from an ONNX file, run by onnxruntime on the CPU; see `from_numpy`.

    The first input of the file is the batch of images, a second one, if it has one, their times;
    the first output is the prediction.

    Raises:
      UserError: if onnxruntime is not installed, or the file cannot be read.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("a denoiser of ONNX", "onnxruntime", "onnx") from error
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path}: onnxruntime cannot read it ({reason(error)})") from error
    inputs, output = session.get_inputs(), session.get_outputs()[0].name

    def run(*values: np.ndarray) -> np.ndarray:
        if len(values) != len(inputs):
            raise ValueError(f"{path} has {len(inputs)} inputs and gets {len(values)}")
        given = {}
        for value, wanted in zip(values, inputs, strict=True):
            kind = np.dtype(_ONNX_TYPES.get(wanted.type, np.float32))
            rounded = np.rint(value) if kind.kind == "i" else value
            given[wanted.name] = rounded.astype(kind)
        return session.run([output], given)[0]

    return from_numpy(run)
