"""fewstep.core: score-distillation primitives, proved against closed-form maths, and one loop that trains with them."""

__version__ = "0.1.0"
