"""LC with its defaults beside other methods, over nets, optimizers, rates and lengths of a run.

    python -m benchmarks.robustness.matrix                          # hours; started again, it goes on
    python -m benchmarks.robustness.matrix --budget-minutes 30      # as far as that goes
    python -m benchmarks.robustness.matrix --validation --nets fit --label "short L steps" \
        --options '{"epochs_per_step": 0.1}' --only 'Adam|Lion'     # to choose settings
    python -m benchmarks.robustness.matrix --table --picture outputs/matrix.png
    python -m benchmarks.robustness.matrix --tiny                   # seconds

Each cell is a net, an optimizer, a rate, its schedule, batches in an epoch, epochs, what is kept, and a seed.
All contenders of a cell start from the same reference and see the same batches in the same order for the
same number of epochs; direct compression trains nothing. The results of the others are kept when LC changes:
give LC's new state another `--label`.
"""

import argparse
import json
import multiprocessing
import os
import re
import time
from pathlib import Path

# A net this small gains nothing from threads, and results do not depend on how many there are.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from benchmarks.robustness import cells, summary
from benchmarks.robustness.nets import NETS
from benchmarks.robustness.running import Store, key, measure

DOCS = """LC with its defaults beside the best of direct compression, magnitude and gradual pruning (in
brackets), error in %. Settings of LC were chosen on validation examples of {fit}. **Bold**: behind by more
than 0.3 points, 3 % of the error, or chance between three seeds.
"""


def main(argv=None):
    args = _arguments(argv)
    chosen = [cell for cell in cells.TINY if args.tiny] or _chosen(args)
    shows = args.table or args.picture or args.docs
    if args.tiny or not shows:
        _run_all(chosen, args)
    rows = Store(args.output).rows()
    found = summary.results(rows, args.label, "validation" if args.validation else "test")
    places = {cell.of_all_seeds: place for place, cell in enumerate(chosen)}
    found = sorted((r for r in found if r.cell in places), key=lambda result: places[result.cell])
    if args.table or args.tiny:
        print(summary.cells_table(found), summary.counted(found), sep="\n\n")
    else:
        print(summary.counted(found))
    if args.picture:
        summary.picture(found, args.picture)
    if args.docs:
        fit = ", ".join(net.name for net in NETS.values() if net.is_fit)
        tables = summary.counted(found), summary.settings_table(found)
        args.docs.write_text("\n".join([DOCS.format(fit=fit), "\n\n".join(tables)]) + "\n")


def _arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--nets", default="all", help="fit, shown, all (default), or names separated by commas")
    add("--only", default="", help="runs the cells whose names match this regular expression")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--contenders", nargs="+", choices=summary.CONTENDERS, default=list(summary.CONTENDERS))
    add("--label", default="unreleased", help="the name of this state of LC; the others' results have none")
    add("--options", type=json.loads, default={}, help="options of LearningCompression, as json")
    add("--validation", action="store_true", help="measures on held-out training examples, to choose by")
    add("--jobs", type=int, default=1, help="number of processes")
    add("--budget-minutes", type=float, default=float("inf"), help="begins nothing after this many minutes")
    add("--output", type=Path, default=Path("outputs/matrix.json"), help="references are kept beside it")
    add("--list", action="store_true", help="prints the names of the cells and runs none")
    add("--table", action="store_true", help="prints all cells in the output, and runs none")
    add("--picture", type=Path, help="draws them, and runs none")
    add("--docs", type=Path, help="writes them as Markdown, and runs none")
    add("--tiny", action="store_true", help="two cells of two epochs")
    return parser.parse_args(argv)


def _chosen(args):
    """Returns the cells that are asked for."""
    of_kind = {
        "all": list(NETS),
        "fit": [net.name for net in NETS.values() if net.is_fit],
        "shown": [net.name for net in NETS.values() if not net.is_fit],
    }
    names = of_kind.get(args.nets, args.nets.split(","))
    if unknown := set(names) - NETS.keys():
        raise SystemExit(f"Expected `--nets` of {', '.join(NETS)}. Received: {', '.join(unknown)}")
    return [c for c in cells.cells(args.seeds) if c.net in names and re.search(args.only, c.name)]


def _run_all(chosen, args):
    if args.list:
        print("\n".join(cell.name for cell in chosen), f"{len(chosen)} cells", sep="\n")
        return
    if args.jobs == 1:
        _run(chosen, args)
        return
    # TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    shares = (chosen[i :: args.jobs] for i in range(args.jobs))
    processes = [context.Process(target=_run, args=(share, args)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _run(chosen, args):
    """Runs what is not in the output yet, until the time is up."""
    store, began = Store(args.output), time.monotonic()
    measured_on = "validation" if args.validation else "test"
    for cell in chosen:
        for contender in args.contenders:
            wanted = {"cell": cell.of_all_seeds, "seed": cell.seed, "measured_on": measured_on}
            wanted |= {"contender": contender, "label": args.label}
            if key(wanted) in map(key, store.rows()):
                continue
            if time.monotonic() - began > 60 * args.budget_minutes:
                print("The time is over. Started again, it goes on here.", flush=True)
                return
            row = measure(
                cell,
                contender,
                label=args.label,
                validation=args.validation,
                folder=args.output.with_suffix(""),
                options=args.options,
            )
            store.add(row)
            gap = "" if row["gap"] is None else f", gap {row['gap']:.3f}"
            said = "".join(f"\n    {message[:200]}" for message in row["warnings"])
            print(
                f"{cell.name}: {contender} {row['error']:.2f} %{gap}, {row['seconds']:.0f} s{said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
