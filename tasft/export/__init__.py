"""`python -m tasft.export <run> --out <folder>`: a finished run as a model that needs no tasft, with a model card.

The adapter is merged into its base in float32, and what is written is checked against base and adapter before it is
put at --out: logits on prompts of the run, every weight, and the tokens of every prompt.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

from tasft.errors import UserError

# Ten times what random models of eight architectures and up to 32 layers of 1,024 give, with adapters that move their
# logits by 0.7 to 2 times the largest: at most 1.6e-6.
TOLERANCE = 2e-5
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code. Mistakes end in one sentence on stderr."""
    given = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tasft").setLevel(logging.INFO)
    try:
        from tasft.export.write import export  # torch takes a second or two: --help and typing errors need none of it

        export(
            given.run, given.out, given.dtype, given.tolerance, given.adapter_only, given.base, given.harm,
            given.max_shard_size,
        )  # fmt: skip
    except UserError as error:
        sys.stderr.write(f"tasft: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"tasft: interrupted; there is nothing at {given.out}\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasft.export",
        description="A finished run as a model that needs no tasft: its adapter merged into its base, with tokenizer,"
        " chat template and model card.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--dtype", choices=DTYPES, help="of the saved weights (default: the run's model.dtype)")
    parser.add_argument(
        "--tolerance",
        type=_positive,
        default=TOLERANCE,
        help="allowed deviation of the merged model's logits from those of base and adapter in float32, in proportion"
        f" to the largest logit (default: {TOLERANCE:g})",
    )
    parser.add_argument("--adapter-only", action="store_true", help="the adapter alone, for PEFT, instead of a model")
    parser.add_argument("--base", metavar="FOLDER", help="where the base model lies now, where it has been moved")
    parser.add_argument("--harm", metavar="JUDGE", help="judge of harm of the card's scores (default: the run's first)")
    parser.add_argument("--max-shard-size", type=_shard, default="5GB", help="of one file of weights (default: 5GB)")
    return parser


def _shard(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"{text} is no size, such as 5GB")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number between 0 and 1")
    return value
