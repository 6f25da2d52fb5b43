"""Config keys of datasets, search splits, classification input and the built-in demo."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_data_config(cfg: CN) -> None:
    """Adds the keys of ``detnas_d2.data`` to a Detectron2 config, in place."""
    _add_dataset_config(cfg)
    _add_classification_config(cfg)
    # Images per batch and process in the evaluation of detection and in a search. More is faster
    # for small images; those of other sizes are padded, which changes results at their borders.
    cfg.TEST.BATCH_SIZE = 1


def _add_dataset_config(cfg: CN) -> None:
    # Datasets declared in YAML alone, a list of mappings; relative paths start at
    # $DETECTRON2_DATASETS (default "datasets"). Per FORMAT:
    #   {NAME: n, FORMAT: coco, IMAGES: folder, ANNOTATIONS: file.json}, CLASSES: [a, b] optional
    #     (then the category names ordered by id);
    #   {NAME: n, FORMAT: voc, ROOT: folder, CLASSES: [a, b]}, optionally SPLIT: train (a name of
    #     ImageSets/Main, or the path of a .txt below ROOT; without it every annotation file),
    #     IMAGES, ANNOTATIONS: folders below ROOT (default JPEGImages, Annotations; both "." where
    #     XML files lie next to images), YEAR: 2007 | 2012 (AP of 11 points | area under the curve;
    #     default 2012);
    #   {NAME: n, FORMAT: csv, IMAGES: folder, ANNOTATIONS: file.csv}, CLASSES optional (then the
    #     sorted names); columns filename,width,height,class,xmin,ymin,xmax,ymax;
    #   {NAME: n, FORMAT: yolo, DATA: data.yaml, SPLIT: train}, CLASSES optional (then its names);
    #     DATA may also be a list of classes as LabelImg, Label Studio and CVAT write it
    #     (classes.txt, obj.names), beside images;
    #   {NAME: n, FORMAT: image_folder, ROOT: folder}, CLASSES optional (then the sorted folders).
    # CSV and YOLO become COCO JSON below CACHE_DIR. Any declaration may have SPLITS: {a: 0.8,
    # b: 0.2}, datasets "a" and "b" of so many of its images, chosen by SPLIT_SEED (default 0).
    cfg.DATASETS.REGISTER = []
    # What register_datasets does about bad images and annotations of the datasets in use:
    # "error" stops and lists them, "drop" leaves them out of training and of the evaluation's
    # ground truth with one warning that lists them too, "ignore" does not look (but what Detectron2
    # cannot read, like VOC files in other folders, is checked as it is converted). What is meant
    # without doubt is amended in a cleaned copy below CACHE_DIR and reported, not listed: absent
    # areas, whole numbers written as 1.0, ids that are texts or too large (renumbered from 1, the
    # user's in "source_id"), masks and key points that a detector of boxes does not read.
    cfg.DATASETS.INVALID = "error"
    # Decode every image in that check, once for each state of the files. Without it the check reads
    # the header and looks whether the file reaches to its end, which finds files that were cut
    # off, but none that are damaged inside.
    cfg.DATASETS.DECODE_CHECK = False
    # Folder of derived files: check stamps, cleaned annotations, search splits, demo scenes. "":
    # data_cache below OUTPUT_DIR, for the stages of a pipeline below the pipeline's.
    cfg.DATASETS.CACHE_DIR = ""

    # "<name>@search_val" and "<name>@search_train" split <name>, a training set, in two. <name> may
    # be a union of datasets of one format and the same classes, "a+b": the images of @search_val
    # are then chosen from all of them together, e.g. DATASETS.TRAIN
    # ("voc_2007_trainval+voc_2012_trainval@search_train",) with SEARCH.VAL
    # "voc_2007_trainval+voc_2012_trainval@search_val". VOC's AP is that of the first one's year.
    cfg.DATASETS.SEARCH_SPLIT = CN()
    # Images in @search_val. DetNAS, section 4.1: 5,000 of COCO's and of VOC's training images.
    cfg.DATASETS.SEARCH_SPLIT.SIZE = 5000
    # Share of the images in @search_val, in (0, 1); 0 means SIZE decides.
    cfg.DATASETS.SEARCH_SPLIT.FRACTION = 0.0
    # Seed of the choice.
    cfg.DATASETS.SEARCH_SPLIT.SEED = 0

    # The demo: digits_scenes_{train,val,test} (detection) and digits_{train,val,test}
    # (classification). Parts of different names show different handwritten digits.
    cfg.DATASETS.DIGITS = CN()
    # Side of a scene, pixels.
    cfg.DATASETS.DIGITS.SCENE_SIZE = 128
    # Scenes in digits_scenes_train.
    cfg.DATASETS.DIGITS.NUM_TRAIN = 600
    # Scenes in digits_scenes_val and digits_scenes_test.
    cfg.DATASETS.DIGITS.NUM_VAL = 150
    cfg.DATASETS.DIGITS.NUM_TEST = 150
    # Side of a classification image, pixels.
    cfg.DATASETS.DIGITS.PATCH_SIZE = 40
    # Classification images drawn from each training digit (each val and test digit: one).
    cfg.DATASETS.DIGITS.PATCHES_PER_DIGIT = 4


def _add_classification_config(cfg: CN) -> None:
    # Defaults: the released ImageNet training code of DetNAS.
    cfg.INPUT.CLASSIFICATION = CN()
    # Side of the network input, pixels.
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 224
    # Shorter side before the center crop of evaluation, pixels.
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 256
    # Smallest share of the image area that a random training crop covers.
    cfg.INPUT.CLASSIFICATION.MIN_SCALE = 0.08
    # Strength of brightness, contrast and saturation jitter in training; 0 turns it off.
    cfg.INPUT.CLASSIFICATION.COLOR_JITTER = 0.4
    # Mirror half of the training images.
    cfg.INPUT.CLASSIFICATION.HFLIP = True
    # Images per batch and process in evaluation.
    cfg.INPUT.CLASSIFICATION.TEST_BATCH_SIZE = 64
