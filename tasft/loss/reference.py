"""How much likelier a response is than under the base model, for losses that compare with it."""

from torch import Tensor

from tasft.loss.inputs import LossInputs


def log_ratio(inputs: LossInputs) -> Tensor:
    """r = log pi(y|x) - log pi_ref(y|x), the sum over the response, per sequence: (B,), nats; 0 without tokens.

    ValueError where the inputs have no ref_logps.
    """
    if inputs.ref_logps is None:
        raise ValueError("this loss compares with the base model: set reference: true in its yaml (ref_logps is None)")
    return inputs.sum_over_response(inputs.logps - inputs.ref_logps)
