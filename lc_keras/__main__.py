"""Run the command line: `lc-keras report|shrink|export`, or `python -m lc_keras`."""

import argparse
import io
import os
import re
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np

_EXAMPLES = """examples:
  lc-keras report pruned.keras
  lc-keras report models/digits/1
  lc-keras shrink pruned.keras smaller.keras
  lc-keras export pruned.keras models/digits --version next
  lc-keras export pruned.keras digits.tflite
"""

# The options of `export` for one kind of target only, by the argument they become.
_FOR_SAVED_MODEL = {
    "version": "--version",
    "storage": "--storage",
    "compute": "--compute",
    "expected_batch": "--expected-batch",
    "values": "--float16",
    "litert": "--litert",
}
_FOR_LITERT = {"quantize": "--quantize", "representative_data": "--data"}
_OTHER_FILES = {
    ".tflite": "is a LiteRT file: take the model that it was made from",
    ".weights.h5": "holds weights alone: load them into the model, and save that as a .keras file",
    ".h5": "is in an older format: load it by `keras.saving.load_model`, and save it as a .keras file",
}
_OPTIONS = _FOR_SAVED_MODEL | _FOR_LITERT | {"overwrite": "--overwrite", "batch_size": "--batch-size"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: List of strings. `None` (default): those of the process.

    Returns:
        Int, the exit status: 0, or 1 if the model or a path was not as expected.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where it cannot write the lines of a table, or a letter of a name, it writes another character.
        sys.stdout.reconfigure(errors="replace")
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (EOFError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"lc_keras: {_with_options(str(error))}", file=sys.stderr)
        return 1
    return 0


def _with_options(text: str) -> str:
    """Return a message about function arguments, reworded for command-line options."""
    for name, option in _OPTIONS.items():
        text = re.sub(rf"\b{name}=True\b|`{name}`", option, text)
        text = re.sub(rf'\b{name}="(\w+)"', rf"{option} \1", text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lc-keras",
        description="Show what pruning left of a Keras model, and write it as small as pruning made it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="report|shrink|export", required=True)

    report = commands.add_parser(
        "report",
        help="show what is left of a model, variable by variable",
        description="Show what is left of a model, variable by variable: how many weights are not zero, "
        "and what it takes to store them and to multiply by them.",
    )
    report.add_argument("model", help="a .keras file, or the directory of a SavedModel written by export")
    report.add_argument("--json", action="store_true", help="print JSON instead of a table")
    report.add_argument(
        "--plot", metavar="FILE", help="also plot the kept fraction of each layer to this image file"
    )
    report.set_defaults(run=_report)

    shrunk = commands.add_parser(
        "shrink",
        help="remove the dead neurons and filters from a model",
        description="Write a smaller model that computes the same, without the dead neurons and filters.",
    )
    shrunk.add_argument("model", help="a .keras file, Functional or Sequential")
    shrunk.add_argument("target", help="the .keras file to write")
    shrunk.add_argument("--overwrite", action="store_true", help="replace what is there")
    shrunk.add_argument(
        "--batch-size", type=int, metavar="N", help="also show the time of a batch of N, before and after"
    )
    shrunk.set_defaults(run=_shrink)

    export = commands.add_parser(
        "export",
        help="write a model for TensorFlow Serving or LiteRT",
        description="Write a .keras model as a SavedModel for TensorFlow Serving, with its zeros packed, "
        "or as a LiteRT file if the target ends in .tflite. Nothing is overwritten unless you ask for it.",
    )
    export.add_argument("model", help="a .keras file")
    export.add_argument("target", help="the directory of the SavedModel, or a file that ends in .tflite")
    export.add_argument("--overwrite", action="store_true", help="replace what is there")
    saved_model = export.add_argument_group("for a SavedModel")
    saved_model.add_argument(
        "--version",
        type=_version,
        metavar="next|N",
        help="the target is a model's base directory: write its next version, or version N "
        "(default: next, if the target already holds versions)",
    )
    saved_model.add_argument(
        "--storage",
        choices=("packed", "dense"),
        help="how weights are stored: without their zeros, or with them (default: packed)",
    )
    saved_model.add_argument(
        "--compute",
        choices=("auto", "dense", "sparse"),
        help="how dense layers multiply: dense, by all weights; sparse, by those that are not zero; "
        "auto, sparse where a measured rule promises a clear gain (default: auto)",
    )
    saved_model.add_argument(
        "--expected-batch",
        type=int,
        nargs="+",
        metavar="N",
        help="the batch sizes for which --compute auto decides (default: 1 32)",
    )
    saved_model.add_argument(
        "--float16",
        dest="values",
        action="store_const",
        const="float16",
        help="store the values of matrices and kernels in half precision",
    )
    saved_model.add_argument(
        "--litert",
        action="store_true",
        default=None,
        help="also write model.tflite beside the SavedModel, for "
        "tensorflow_model_server --prefer_tflite_model",
    )
    litert = export.add_argument_group("for LiteRT")
    litert.add_argument("--quantize", choices=("float16", "int8"), help="store weights in fewer bits")
    litert.add_argument(
        "--data",
        dest="representative_data",
        metavar="FILE.npy",
        help="sample inputs of the model, which --quantize int8 needs; a .npz file holds those of several "
        "inputs by name",
    )
    export.set_defaults(run=_export)

    for command in (report, shrunk, export):
        command.add_argument(
            "--unsafe",
            action="store_true",
            help="also load Lambda layers; they run code from the file, so you must trust its author",
        )
    return parser


def _report(args: argparse.Namespace) -> None:
    from lc_keras.measuring.counting import report
    from lc_keras.showing import show

    is_export = os.path.isdir(args.model)
    found = report(
        args.model if is_export else _load(args, "a .keras file, or the directory of a SavedModel")
    )
    print(found.to_json()) if args.json else show(found)
    if args.plot:
        found.plot(args.plot)


def _shrink(args: argparse.Namespace) -> None:
    from lc_keras.showing import show
    from lc_keras.shrinking import shrink, shrink_report

    if not args.target.endswith(".keras"):
        raise ValueError(f"Expected the target to end in .keras. Received: '{args.target}'")
    if os.path.isdir(args.target):
        raise ValueError(f"Expected the target to be a file. Received: the directory '{args.target}'.")
    if os.path.lexists(args.target) and not args.overwrite:
        raise ValueError(f"Expected a new target. Received: '{args.target}', which exists; pass --overwrite.")
    model = _load(args)
    found = shrink_report(model, args.batch_size)
    # The target may be the model itself: it stays whole until the smaller one is.
    unfinished = f"{args.target}.unfinished-{uuid.uuid4().hex}.keras"
    try:
        small = shrink(model)
        os.makedirs(os.path.dirname(args.target) or ".", exist_ok=True)
        small.save(unfinished)
        os.replace(unfinished, args.target)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
    show(found)


def _export(args: argparse.Namespace) -> None:
    import tensorflow as tf

    from lc_keras.export import export_litert, export_saved_model

    litert = args.target.endswith(".tflite")
    export: Callable[..., object] = export_litert if litert else export_saved_model
    mine, others = (_FOR_LITERT, _FOR_SAVED_MODEL) if litert else (_FOR_SAVED_MODEL, _FOR_LITERT)
    kind = "a LiteRT file" if litert else "a SavedModel"
    given = {name: value for name, value in vars(args).items() if value is not None}
    if wrong := [option for name, option in others.items() if name in given]:
        raise ValueError(
            f"Expected options for {kind}, '{args.target}': {', '.join(mine.values())}. "
            f"Received: {', '.join(wrong)}"
        )
    options = {name: given[name] for name in mine if name in given}
    if "representative_data" in options:
        options["representative_data"] = [_inputs(options["representative_data"])]
    try:
        print(_with_options(str(export(_load(args), args.target, overwrite=args.overwrite, **options))))
    except tf.errors.OpError as error:
        # TensorFlow raises its own errors, for example if a directory cannot be made.
        raise OSError(error.message) from error


def _load(args: argparse.Namespace, what: str = "a .keras file") -> "keras.Model":
    import keras

    why = ""
    if not os.path.isfile(args.model):
        why = "is a directory" if os.path.isdir(args.model) else "does not exist"
    # Keras goes by the file name, and its safe mode is for this format.
    elif not (args.model.endswith(".keras") and zipfile.is_zipfile(args.model)):
        named = (what for end, what in _OTHER_FILES.items() if args.model.lower().endswith(end))
        why = next(named, "is not one")
    if why:
        raise ValueError(f"Expected {what}. Received: '{args.model}', which {why}.")
    try:
        return keras.saving.load_model(args.model, compile=False, safe_mode=not args.unsafe)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"Expected a .keras file. Received: '{args.model}': {error.args[0]}") from error
    except TypeError as error:
        if "Could not locate" in str(error):
            raise ValueError(
                f"'{args.model}' has classes or functions that Keras does not have, and that are not in the "
                "file: load it in Python, and call `lc_keras.report`, `shrink` or `export_saved_model` there."
            ) from error
        raise
    except ValueError as error:
        if "safe_mode" in str(error) and not args.unsafe:
            raise ValueError(
                f"'{args.model}' has a Lambda layer, which runs code from the file; "
                "pass --unsafe if you trust its author."
            ) from error
        raise


def _inputs(path: str) -> "np.ndarray | dict[str, np.ndarray]":
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "Expected --data to be a .npy or .npz file of numbers. "
            f"Received: '{path}', which cannot be read as one: {error}"
        ) from error


def _version(text: str) -> int | str:
    if text == "next":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'expected "next" or a number, received {text!r}')
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
