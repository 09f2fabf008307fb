"""A codec from outside: values in {-1, 0, 1}, five to a byte."""

from dataclasses import dataclass

from sim.payload import Compressor, Payload, Wire


@dataclass(frozen=True)
class Ternary(Compressor):
    """The sign of values above `threshold` times the mean magnitude, and that mean."""

    threshold: float = 0.7

    def encode(self, x, state, ctx):
        scale = x.abs().mean(-1, keepdim=True)
        code = x.sign() * (x.abs() > self.threshold * scale)
        return Payload(self, x.shape[1:], Wire(code, symbols=3), scale=Wire(scale, bits=32)), state

    def decode(self, payload):
        return payload.body * payload["scale"]
