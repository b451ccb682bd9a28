"""The benchmark datasets: where their official files are and how they are named."""

from typing import ClassVar

from segmenter_jax.data import specs
from segmenter_jax.data.builders.benchmark import Benchmark, Paths


class ADE20K(Benchmark, skip_registration=True):
    """ADE20K of the scene parsing challenge, 150 classes."""

    dataset_spec = specs.ADE20K
    counts: ClassVar = {"train": 20210, "validation": 2000, "test": 3352}
    unlabelled = ("test",)
    archives = ("ADEChallengeData2016.zip", "release_test.zip")
    layout = (
        "ADEChallengeData2016.zip, or images/{training,validation}/*.jpg and "
        "annotations/{training,validation}/*.png; test images as release_test/testing/*.jpg"
    )

    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """See `layout`."""
        images = self.match(r"images/(?P<split>training|validation)/(?P<name>[^/]+)\.jpg", problems)
        tests = self.match(r"(?P<split>test)ing/(?P<name>[^/]+)\.jpg", problems)
        labels = self.match(
            r"annotations/(?P<split>training|validation)/(?P<name>[^/]+)\.png", problems
        )
        return images | tests, labels


class Cityscapes(Benchmark, skip_registration=True):
    """Cityscapes with fine annotations, 19 classes."""

    dataset_spec = specs.CITYSCAPES
    counts: ClassVar = {"train": 2975, "validation": 500, "test": 1525}
    unlabelled = ("test",)
    archives = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
    layout = (
        "a folder with leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or with "
        "leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png and "
        "gtFine/{train,val}/CITY/*_gtFine_labelIds.png (or *_gtFine_labelTrainIds.png)"
    )

    @property
    def spec(self) -> specs.DatasetSpec:
        """That of labelIds files, or of labelTrainIds files if there are no others."""
        if self._kind() == "labelIds":
            return specs.CITYSCAPES
        return specs.DatasetSpec(
            specs.CITYSCAPES.name, specs.CITYSCAPES.class_names, specs.CITYSCAPES.colors
        )

    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """See `layout`. The labels of the test split are dummies and left out."""
        images = self.match(
            r"leftImg8bit/(?P<split>train|val|test)/[^/]+/(?P<name>[^/]+)_leftImg8bit\.png",
            problems,
        )
        labels = self.match(
            rf"gtFine/(?P<split>train|val)/[^/]+/(?P<name>[^/]+)_gtFine_{self._kind()}\.png",
            problems,
        )
        if images and not labels and not images.keys() <= {"test"}:
            problems.append(
                f"{self._files.root}: no *_gtFine_labelIds.png; *_instanceIds.png and *_color.png "
                "hold no class ids"
            )
        return images, labels

    def _kind(self) -> str:
        kinds = [
            kind
            for kind in ("labelIds", "labelTrainIds")
            if any(
                path.endswith(f"_gtFine_{kind}.png") and "/test/" not in path
                for path in self._files.paths
            )
        ]
        return kinds[0] if kinds else "labelIds"


class CamVid(Benchmark, skip_registration=True):
    """CamVid in 11 classes, as folders of images and labels."""

    dataset_spec = specs.CAMVID
    counts: ClassVar = {"train": 367, "validation": 101}
    layout = "images/{train,val}/*.{jpg,png} and annotations/{train,val}/*.png"

    def find_files(self, problems: list[str]) -> tuple[Paths, Paths]:
        """See `layout`; a test split is read where there is one."""
        splits = "(?P<split>train|val|test)"
        images = self.match(rf"images/{splits}/(?P<name>[^/]+)\.(?:jpg|png)", problems)
        return images, self.match(rf"annotations/{splits}/(?P<name>[^/]+)\.png", problems)
