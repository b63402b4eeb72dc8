"""Linear SVMs on frozen features of VOC2007 (Goyal et al. 2019, VISSL; PCL), low-shot too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from harness.errors import UserError
from harness.protocol import Estimate, EvalProtocol, Metric
from harness.recipe import Reading
from harness.svm import Difficult, Sampling, Solver
from harness.views import CenterCrop

if TYPE_CHECKING:
    import numpy as np

    from harness.backbone import Backbone
    from harness.data import ImageSet
    from harness.scale import Scale
    from harness.svm import Problem

SQUASH = CenterCrop(interpolation="bilinear", squash=True)  # to 256, then all of it to 224 x 224
SOLVER = Solver()
COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
# vissl @09270ed, LINEAR_EVAL_FEAT_POOL_OPS_MAP: side, stride and padding that leave 8,192 or 9,216
# numbers of a map of a 224 px image.
POOLS = {
    "conv1": (10, 10, 4),
    "layer1": (16, 8, 0),
    "layer2": (13, 5, 0),
    "layer3": (8, 3, 0),
    "layer4": (6, 1, 0),
}


@dataclass(frozen=True, kw_only=True)
class VOC07SVM(EvalProtocol):
    """Train a linear SVM per class on trainval; mean average precision on test.

    The cost C of each class is cross-validated on trainval. With `shots`, SVMs are trained on
    that few images instead, several times; then C can't be cross-validated, and the best of
    several is picked on test, which the metric's name says.
    """

    version: ClassVar[int] = 2  # 2: SVMs are solved to their optimum, not by liblinear

    dataset: str = "voc07"  # voc07 (below DATA_ROOT) or a folder with VOC's ImageSets/Main
    transform: CenterCrop = SQUASH  # of trainval and of test images alike
    stage: Literal["conv1", "layer1", "layer2", "layer3", "layer4"] = "layer4"  # of a ResNet
    pool: Literal["vissl", "mean"] = "vissl"  # its map by VISSL's average pooling, or its mean
    costs: tuple[float, ...] = COSTS  # values of C to choose from
    folds: int = 3  # of the cross-validation
    difficult_train: Difficult = "negative"  # images with only difficult objects of a class
    difficult_test: Difficult = "dropped"  # the same, in test
    solver: Solver = SOLVER  # of each SVM
    shots: tuple[int, ...] = ()  # positive images per class of low-shot SVMs; none: all of trainval
    samples: int = 5  # how often low-shot images are drawn
    sampling: Sampling = "per_class"  # each class its own negatives, or what all classes drew
    seed: int = 0  # of the low-shot images, and of their order in the solver

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean average precision; low-shot its mean and standard deviation over samples."""
        if not self.shots:
            return (Metric(name="voc07_map", unit="mAP"),)
        means = tuple(Metric(name=self._name(shots), unit="mAP") for shots in self.shots)
        return means + tuple(
            Metric(name=f"{metric.name}_sd", higher_is_better=False) for metric in means
        )

    def _name(self, shots: int) -> str:
        return f"voc07_map_k{shots}" + ("_best_on_test" if len(self.costs) > 1 else "")

    def run(self, backbone: Backbone, workdir: Path) -> dict[str, Estimate]:
        """Mean average precision in percent over classes, and low-shot over samples too.

        Every process holds the features of all images (4 bytes x images x width) and the inner
        products of trainval's (8 bytes x images²: 200 MB for VOC2007); each worker that solves an
        SVM copies of these (28 bytes x images²), or with liblinear of features (28 bytes x images
        x width: 1.2 GB at 8,192).
        What is solved is kept below `workdir/svm`. `predictions.npz` holds the decision values:
        `decisions` (test images, classes), low-shot `decisions_k<shots>` (test images, classes,
        samples).

        Raises:
            UserError: Settings that don't fit the backbone or the data set.
        """
        import torch

        from harness import newton, svm
        from harness.data import open_split
        from harness.features import collect, extract, gathered
        from harness.recipe import fingerprint

        reading = self._reading(backbone)
        train, test = open_split(self.dataset, "train"), open_split(self.dataset, "val")
        self._check(train, test)
        bank = gathered(extract(backbone, train, self.transform, reading))
        queries = extract(backbone, test, self.transform, reading)
        every = gathered(queries)
        trained = svm.images_of(
            bank.values.cpu().numpy(), bank.labels.numpy(), self.difficult_train
        )
        problem = svm.Problem(
            train=trained,
            test=svm.images_of(
                every.values.cpu().numpy(), every.labels.numpy(), self.difficult_test
            ),
            solver=self.solver,
            low_shot=svm.LowShot(shots=self.shots, sampling=self.sampling, seed=self.seed),
            seed=self.seed,
            gram=newton.gram_matrix(trained.features) if self.solver.method == "newton" else None,
        )
        folder = workdir / "svm" / fingerprint(self, problem.digest())
        solve = self._low_shot if self.shots else self._full
        decisions = solve(problem, train.classes, folder)
        mine = {name: torch.from_numpy(x)[queries.indices] for name, x in decisions.items()}
        found = collect(queries, mine, workdir)
        return self._estimates([found[name] for name in decisions], problem.test.signs)

    def _reading(self, backbone: Backbone) -> Reading:
        if (self.stage, self.pool) == ("layer4", "mean"):
            return Reading()
        if backbone.is_vit:
            raise UserError(
                f"stage={self.stage} and pool={self.pool} read a map, and {backbone.spec.name} has"
                " none; use --variant pooled, which takes a ViT's CLS token."
            )
        return Reading(stage=self.stage, pool=POOLS[self.stage] if self.pool == "vissl" else None)

    def _check(self, train: ImageSet, test: ImageSet) -> None:
        """Refuse data and settings of which some SVM could not be trained or tested."""
        from harness.svm import signs

        if train.labels.ndim != 2 or train.classes != test.classes or len(train.classes) < 2:
            raise UserError(
                f"data set {self.dataset!r} does not say of each image which of two or more"
                " classes it shows; use voc07 or a folder with VOC's ImageSets/Main."
            )
        least = {"costs": min(self.costs, default=0), "folds": self.folds - 1}
        least |= {"shots": min(self.shots, default=1), "samples": self.samples}
        if wrong := [name for name, value in least.items() if value <= 0]:
            raise UserError(
                f"{wrong[0]}={getattr(self, wrong[0])} does not do: costs and shots are positive,"
                " folds at least 2, samples at least 1; VISSL's are the defaults."
            )
        trained = signs(train.labels, self.difficult_train)
        tested = signs(test.labels, self.difficult_test)
        positive, negative = ((trained == sign).sum(axis=0).tolist() for sign in (1, -1))
        needed = self.folds if len(self.costs) > 1 and not self.shots else 1
        for name, has, lacks in zip(train.classes, positive, negative, strict=True):
            if min(has, lacks) < needed:
                raise UserError(
                    f"class {name!r} has {has} positive and {lacks} negative images in trainval,"
                    f" and {needed} of each are needed (folds={self.folds}); use a larger data set,"
                    " fewer folds or a single cost."
                )
        for name, count in zip(train.classes, (tested == 1).sum(axis=0), strict=True):
            if not count:
                raise UserError(
                    f"class {name!r} has no positive image in test, so that its average precision"
                    f" is not defined; use a data set other than {self.dataset!r}."
                )
        others = len(train.classes) - 1
        most = min(min(has, lacks // others) for has, lacks in zip(positive, negative, strict=True))
        if self.sampling == "per_class" and max(self.shots, default=0) > most:
            raise UserError(
                f"shots={max(self.shots)} draws as many positive and {others} times as many"
                f" negative images of each class, and data set {self.dataset!r} has enough of each"
                f" for {most}; use --shots of at most {most}."
            )

    def _full(
        self, problem: Problem, classes: Sequence[str], folder: Path
    ) -> dict[str, np.ndarray]:
        """Decisions (test images, classes) of SVMs trained on all of trainval."""
        from harness import svm
        from harness.precision import Ranking
        from harness.progress import say
        from harness.tasks import solve_all

        chosen = [self.costs[0]] * len(classes)
        if len(self.costs) > 1:
            tasks = [(number, fold) for number in range(len(classes)) for fold in range(self.folds)]
            scores = solve_all(
                partial(svm.cross_validate, problem, self.costs, self.folds),
                tasks,
                (len(self.costs), 2),
                folder=folder / "folds",
                label="SVMs, cross-validation",
            )
            table = scores[..., 0].reshape(len(classes), self.folds, -1).mean(axis=1)
            chosen = [self.costs[place] for place in table.argmax(axis=1)]  # the first of equals
            say(
                f"cross-validation: {int(scores[..., 1].sum())} of {scores[..., 1].size} SVMs"
                f" of {self.solver.method} stopped before they converged"
            )
        decisions = solve_all(
            partial(svm.train_and_score, problem),
            list(enumerate(chosen)),
            (len(problem.test.features),),
            folder=folder / "test",
            label="SVMs, trainval",
        ).T
        for number, name in enumerate(classes):
            ranking = Ranking.of(decisions[:, number], problem.test.signs[:, number])
            say(f"{name}: C {chosen[number]:g}, AP {100 * ranking.precision():.2f}")
        return {"decisions": decisions}

    def _low_shot(
        self, problem: Problem, classes: Sequence[str], folder: Path
    ) -> dict[str, np.ndarray]:
        """Decisions (test images, classes, samples) for each number of shots."""
        import numpy as np

        from harness import svm
        from harness.progress import say
        from harness.tasks import solve_all

        tasks = [(c, sample) for c in range(len(classes)) for sample in range(self.samples)]
        best = [self.costs[0]] * len(self.shots)
        if len(self.costs) > 1:
            precision = solve_all(
                partial(svm.low_shot_precision, problem, self.costs),
                tasks,
                (len(self.shots), len(self.costs)),
                folder=folder / "costs",
                label="low-shot SVMs of every cost",
            )
            best = [self.costs[place] for place in precision.mean(axis=0).argmax(axis=1)]
        for shots, cost in zip(self.shots, best, strict=True):
            say(f"{shots} shots: C {cost:g}" + (", the best on test" * (len(self.costs) > 1)))
        found = solve_all(
            partial(svm.low_shot_scores, problem, tuple((cost,) for cost in best)),
            tasks,
            (len(self.shots), 1, len(problem.test.features)),
            folder=folder / f"test-{'-'.join(map(str, best))}",
            label="low-shot SVMs",
        )
        cells = found.reshape(len(classes), self.samples, len(self.shots), -1)
        return {
            f"decisions_k{shots}": np.ascontiguousarray(cells[:, :, place].transpose(2, 0, 1))
            for place, shots in enumerate(self.shots)
        }

    def _estimates(self, decisions: list[np.ndarray], signs: np.ndarray) -> dict[str, Estimate]:
        """Each metric, from decisions in its order, with its interval over test images."""
        import numpy as np

        from harness.precision import Ranking, estimate, mean_precision

        images, classes = signs.shape
        means, deviations = [], []
        for cells in decisions:
            samples = [
                [Ranking.of(scores[:, c], signs[:, c]) for c in range(classes)]
                for scores in np.moveaxis(cells.reshape(images, classes, -1), 2, 0)
            ]
            means.append(estimate([ranking for sample in samples for ranking in sample], images))
            deviations.append(Estimate(float(np.std([mean_precision(s) for s in samples]))))
        found = means + (deviations if self.shots else [])
        return {metric.name: value for metric, value in zip(self.metrics, found, strict=True)}

    def scaled(self, scale: Scale) -> Self:
        """The same SVMs at the scale's image size, on the mean of the map.

        VISSL's pooling fits maps of 224 px images alone.
        """
        size = scale.image_size
        resize = size if self.transform.resize else 0
        return replace(
            self,
            dataset=scale.several,
            transform=replace(self.transform, resize=resize, size=size),
            pool="mean",
        )


# vissl @09270ed, benchmark/linear_image_classification/voc07: trainval takes images with only
# difficult objects of a class as its negatives (svm_trainer.py makes 0 into -1 and has -1 for
# them), test leaves them out.
VISSL = VOC07SVM()
# The same on the pooled 2,048-d feature of a centre crop. Barlow Twins (Appendix C.2) and VICReg
# train on crops of 224 px "following" Goyal et al. and Misra & van der Maaten; that they pool to
# 2,048 numbers is unverified, as neither released code for VOC07.
POOLED = replace(VISSL, transform=CenterCrop(interpolation="bilinear"), pool="mean")
# PCL @964da1f, eval_svm_voc.py: C .5, and difficult images are negatives in test too.
PCL = replace(POOLED, costs=(0.5,), difficult_test="negative")
# vissl @09270ed, benchmark/low_shot_transfer/voc07: straight to 224 x 224, nothing difficult is
# drawn, and of the costs' means over samples the best on test is reported.
LOW_SHOT = replace(
    VISSL,
    transform=replace(SQUASH, resize=0),
    difficult_train="dropped",
    shots=(1, 2, 4, 8, 16, 32, 64, 96),
)
# PCL @964da1f: C is fixed, so that nothing is picked on test; a draw's images serve all classes.
PCL_LOW_SHOT = replace(PCL, shots=(1, 2, 4, 8, 16), sampling="pooled")
VARIANTS = {
    "vissl": VISSL,
    "pooled": POOLED,
    "pcl": PCL,
    "low_shot": LOW_SHOT,
    "pcl_low_shot": PCL_LOW_SHOT,
}


if __name__ == "__main__":
    from harness.command import main

    main("voc07_svm")
