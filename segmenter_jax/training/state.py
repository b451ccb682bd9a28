"""What a training step reads and replaces, and what it does besides."""

import dataclasses

import flax.struct
import jax
import optax

from segmenter_jax.models.decoders import fold_head_norm
from segmenter_jax.models.params import Params


@flax.struct.dataclass
class TrainState:
    """What a step reads and replaces.

    Attributes:
      step: int32 scalar, number of steps done.
      params: float32 parameters of the Segmenter.
      opt_state: state of the optimizer, of the trained parameters only.
      ema: exponential moving average of `params`, or None.
      stats: running statistics of a batch norm before the head, or None.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None
    stats: Params | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and to keep, of the network with `head_norm="none"`.

        The average where there is one.
        """
        params = self.params if self.ema is None else self.ema
        return params if self.stats is None else fold_head_norm(params, self.stats)


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a training step does besides the network and the optimizer.

    Attributes:
      mean, std: per-channel normalisation, in units of 0..1.
      ignore_label: label value that counts nowhere.
      class_weights: a pixel's weight in the loss by its class; None means 1.
      photometric: apply photometric distortion.
      grad_accum_steps: parts the global batch is processed in, one after the other.
      freeze_encoder: leave the encoder's parameters as they are.
      from_features: batches hold the tokens of a frozen encoder in the place of images.
      ema_decay: of the moving average of the parameters; 0 means none is kept.
      skip_non_finite: leave everything but the step as it is where the loss, the gradient or the
        update is not finite.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    ignore_label: int = 255
    class_weights: tuple[float, ...] | None = None
    photometric: bool = True
    grad_accum_steps: int = 1
    freeze_encoder: bool = False
    from_features: bool = False
    ema_decay: float = 0.0
    skip_non_finite: bool = False


def split_params(params: Params, options: StepOptions) -> tuple[Params, Params]:
    """(trained, frozen) parameters; their union is `params`."""
    frozen = ("encoder",) if options.freeze_encoder else ()
    trained = {name: value for name, value in params.items() if name not in frozen}
    return trained, {name: params[name] for name in frozen}
