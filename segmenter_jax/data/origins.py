"""Where the original files of datasets come from."""

ADE20K_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

# Where the files come from, for those who do not have them yet.
ORIGINS = {
    "ade20k": f"--download fetches {ADE20K_URL} (0.9 GB). Test images: release_test.zip of the "
    "same place, beside it in one folder, given as --source",
    "cityscapes": "log in at https://www.cityscapes-dataset.com, fetch "
    "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and give the "
    "folder that holds both as --source",
    "pascal_context": "fetch VOCtrainval_03-May-2010.tar from the PASCAL VOC 2010 site and unpack "
    "it; from the dataset's own site add trainval.tar.gz, unpacked, labels.txt and 59_labels.txt, "
    "or, made by others of these, SegmentationClassContext/*.png and "
    "ImageSets/SegmentationContext/{train,val}.txt in VOCdevkit/VOC2010; give the folder that "
    "holds all of it as --source",
    "rgbt_glass": "ask the dataset's authors; give the folder with train/ and test/ as --source",
    "camvid": "give the folder or zip with images/{train,val} and annotations/{train,val} as "
    "--source",
    "folder": "your own images: classes.json, and images/SPLIT and annotations/SPLIT or the "
    "folders that it names",
}
