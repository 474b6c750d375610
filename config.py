"""The configuration: every key with its default, read from YAML files (BASE first), then --opts, then flags.

Every value knows its origin ('configs/a.yaml:12', '--opts', '--batch-size' or 'default'); `--print-config` shows it.
The helpers are utils/yaml_lines.py (files and lines), utils/config_values.py (types), utils/config_keys.py (unknown
keys) and utils/config_rules.py (rules).
"""

from pathlib import Path

from yacs.config import CfgNode as CN

from utils import config_rules as must
from utils.config_keys import unknown_key
from utils.config_rules import Key
from utils.config_values import as_yaml, convert, file_path, free_value, image_size, span
from utils.errors import ConfigError
from utils.yaml_lines import Leaf, parse_value, read_leaves, shown_path

# When a key has no effect, for those that share the reason.
ALONE = "there is one process"
NO_AUXILIARY = "SEG.AUX_WEIGHT is 0, or TASK is not segmentation"
NO_AVERAGE = "TRAIN.EMA.ENABLE is false"
NO_GPU = "the device is no GPU"
NOT_COCO = "DATA.DATASET is not coco"
NO_SHORTCUT = "there is no shortcut (MODEL.SHORTCUT.KERNELS is []), or TIED with SPAN 1"
NO_STEPS = "only LR_SCHEDULER.NAME step decays in epochs"
NO_DRLOC = "DRLOC.WEIGHT is 0, or TASK is not classification"
NO_GUIDANCE = "GUIDANCE.TEACHER is empty, or TASK is not classification"
NO_TEACHER = "DISTILLATION.TEACHER is empty, or TASK is not classification"
NOT_DINO = "TASK is not dino"
NOT_DETECTED = "TASK is not detection"
NOT_ERASED = "AUG.REPROB is 0"
NOT_MIXED = "neither AUG.MIXUP nor AUG.CUTMIX is on"
NOT_RESIZED = "AUG.CROP is not resized"
NOT_SEGMENTED = "TASK is not segmentation"
OFF_AMP = "AMP.ENABLE is false"
ON_CPU = "the images are augmented on the CPU here (DATA.PIPELINE)"
OTHER_OPTIMIZER = "TRAIN.OPTIMIZER.NAME does not have it"

# fmt: off
KEYS = {  # a new key is a row here and a use in the builder that reads it
    "TASK": Key("classification", "what is learned and how it is judged (package tasks)", must.NOT_EMPTY, built=False),
    "OUTPUT": Key("output", "where run folders are made: OUTPUT/MODEL.NAME/TAG", must.NOT_EMPTY, free=True,
        kind=file_path),
    "TAG": Key("default", "name of this run among runs of the same configuration", must.FOLDER_NAME, free=True),
    "SEED": Key(0, "seed of weights, sample order, augmentation, mixing and dropout", must.at_least(0), built=False),
    "DEVICE": Key("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps, ...", must.NOT_EMPTY, free=True),
    "COMPILE": Key(False, "compile the step (torch.compile): forward, loss and backward; and the evaluation",
        free=True),
    "COMPILE_MODE": Key("auto",
        "of torch.compile: auto (CUDA graphs on one GPU without accumulation), default, reduce-overhead (CUDA graphs), "
        "max-autotune[-no-cudagraphs] (tries kernels)",
        must.one_of("auto", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"), free=True,
        idle="COMPILE is false"),
    "DETERMINISTIC": Key(False, "deterministic algorithms only; slower on GPUs", built=False),
    "PRINT_FREQ": Key(50, "optimizer steps between two lines of the log", must.at_least(1), free=True),
    "TENSORBOARD": Key(True, "write TensorBoard files into the run folder", free=True),
    "DIST_TIMEOUT": Key(600.0, "seconds until a process that waits for the others gives up",
        must.at_least(1), free=True, idle=ALONE),

    "MODEL.TYPE": Key("vit_tiny", "a variant of the package models", must.NOT_EMPTY, built=False),
    "MODEL.NAME": Key("", "names the run folder; empty: the name of the --cfg file", must.FOLDER_NAME, free=True),
    "MODEL.NUM_CLASSES": Key(0, "0: as many as the data has; otherwise the two must agree",
        must.at_least(0), built=False),
    "MODEL.DROP_RATE": Key(0.0, "dropout probability", must.FRACTION),
    "MODEL.DROP_PATH_RATE": Key(0.0, "stochastic depth of the last block, rising linearly from 0", must.FRACTION,
        idle="it rises from 0 at the first block, and there is only one"),
    "MODEL.LABEL_SMOOTHING": Key(0.1, "share of the target spread over all classes", must.FRACTION),
    "MODEL.PRETRAINED": Key("", "weights to start from (.pth or .safetensors); head and positions are adapted",
        built=False, kind=file_path),
    "MODEL.RESUME": Key("", "checkpoint to evaluate (--eval) or to continue in a run folder that has none", free=True,
        kind=file_path),
    "MODEL.INIT": Key("paper", "initial weights: paper (the published code's), timm; ViT and CaiT: mimetic, impulse",
        must.one_of("paper", "timm", "mimetic", "impulse"), idle="this model has its own initial values"),
    "MODEL.ARGS": Key(CN(new_allowed=True),
        "constructor keywords of the model in upper case, for instance PATCH_SIZE: 4"),
    "MODEL.SHORTCUT.KERNELS": Key([], "kernel sizes of the parallel depth-wise convolutions; []: the plain backbone",
        must.ODD_SIZES, kind=int),
    "MODEL.SHORTCUT.SPAN": Key(1, "consecutive blocks that one shortcut bypasses; stage: all blocks of a stage",
        must.SPAN, kind=span, idle=NO_SHORTCUT),
    "MODEL.SHORTCUT.IDENTITY": Key(False, "add the block's input itself (table 2 of arXiv 2407.19394)"),
    "MODEL.SHORTCUT.TIED": Key(False, "SPAN blocks share one module's weights, each bypassed on its own",
        idle=NO_SHORTCUT),
    "MODEL.SHORTCUT.LEARNED_SCALE": Key(False, "a learned factor per shortcut, 1 at the start", idle=NO_SHORTCUT),
    "MODEL.SHORTCUT.IMPL": Key("auto",
        "torch (plain modules), triton (one GPU operator) or auto (triton on NVIDIA GPUs)",
        must.one_of("auto", "torch", "triton"), free=True, idle=NO_SHORTCUT),
    "MODEL.LOCALITY.TOKENIZER": Key("",
        "from image to tokens: patch, conv[:kernel=3], spt, sope or i2t[:stem=64]; '': the variant's own"),
    "MODEL.LOCALITY.ATTENTION": Key("", "how tokens mix: plain, lsa or head_tokens; '': the variant's own"),
    "MODEL.LOCALITY.FEED_FORWARD": Key("",
        "after the attention: mlp, leff, daff or localvit[:se=4]; '': the variant's own"),
    "MODEL.LOCALITY.BLOCK": Key("", "form of a block: plain (pre-norm), cct or localvit; '': the variant's own"),

    "DATA.DATASET": Key("digits", "digits, cifar10, cifar100, tiny-imagenet, imagenet, imagenet22k, imagefolder, "
        "webdataset, parquet, list, arrays, idx or fake; "
        "segmentation: ade20k, cityscapes, pascal-voc, segfolder or shapes; "
        "detection: coco or detection_shapes", must.NOT_EMPTY, built=False),
    "DATA.DATA_PATH": Key("", "folder of the dataset (list, arrays: or file; parquet: or hf://datasets/NAME)",
        free=True, kind=file_path,
        idle="the dataset needs no files"),
    "DATA.EXCLUDE": Key("", "file of classes to leave out of imagenet22k, a WordNet id a line", kind=file_path,
        built=False, idle="DATA.DATASET is not imagenet22k"),
    "DATA.IMG_SIZE": Key(224, "side in pixels, or [HEIGHT, WIDTH]", must.PIXELS, kind=image_size, built=False),
    "DATA.BATCH_SIZE": Key(128, "images per process and forward pass", must.at_least(1), built=False),
    "DATA.INTERPOLATION": Key("bicubic", "of crops and of the resizing for evaluation",
        must.one_of("bicubic", "bilinear", "nearest", "lanczos")),
    "DATA.NUM_WORKERS": Key(-1, "loader processes per process; -1: as many as it has cores, at most 8",
        must.at_least(-1), free=True),
    "DATA.PIN_MEMORY": Key(True, "page-locked host memory, for faster copies to a GPU", free=True, idle=NO_GPU),
    "DATA.ZIP_MODE": Key(False, "read imagenet from train.zip and val.zip with train_map.txt and val_map.txt",
        built=False),
    "DATA.CACHE_MODE": Key("part",
        "what of the zip files is kept in memory: no, full (everything) or part (what this process reads)",
        must.one_of("no", "full", "part"), free=True, idle="DATA.ZIP_MODE is false"),
    "DATA.VAL_SPLIT": Key(0.0,
        "fraction of the training set held out to choose the epoch; the test set is then read once", must.FRACTION,
        built=False),
    "DATA.BAD_IMAGES": Key("error", "an unreadable training image: error, or skip (counted and logged)",
        must.one_of("error", "skip"), built=False),
    "DATA.WORKER_TIMEOUT": Key(300.0, "seconds without a batch until a loader counts as hung; 0: wait for ever",
        must.at_least(0), free=True, idle="there are no loader workers"),
    "DATA.DOWNLOAD": Key(True, "fetch cifar10, cifar100 and hf:// if they are absent", free=True,
        idle="only CIFAR and parquet from hf:// are downloaded"),
    "DATA.COLUMNS": Key([], "parquet, list: names of the image's and of the label's column; []: found (docs/data.md)",
        must.COLUMNS, kind=str, built=False, idle="DATA.DATASET is neither parquet nor list"),
    "DATA.ARROW_CACHE": Key("", "folder for uncompressed copies of Parquet files; empty: .datasets/arrow", free=True,
        kind=file_path, idle="DATA.DATASET is not parquet"),
    "DATA.PIPELINE": Key("auto",
        "augment on the cpu (PIL), the device, or auto: the device on CUDA where the recipe allows",
        must.one_of("auto", "cpu", "device"), built=False),
    "DATA.DEVICE_BUDGET": Key(8.0, "GB of pixels that may lie on the device; with more, workers decode and crop",
        must.at_least(0), free=True, idle=ON_CPU),
    "DATA.AUGMENT_IMPL": Key("auto", "of the device pipeline: torch, triton, or auto (triton where it runs)",
        must.one_of("auto", "torch", "triton"), free=True, built=False, idle=ON_CPU),
    "DATA.PIXEL_CACHE": Key("", "folder for images decoded once for the device; empty: .datasets/pixels", free=True,
        kind=file_path, idle=ON_CPU),
    "DATA.MEAN": Key([], "of the channels, for normalisation; []: the dataset's own", must.CHANNELS, kind=float),
    "DATA.STD": Key([], "standard deviations, likewise", must.DEVIATIONS, kind=float),

    "DATA.CLASSES": Key([], "names of segfolder's classes; []: from classes.txt beside train/", kind=str, built=False,
        idle="DATA.DATASET is not segfolder"),
    "DATA.IGNORE": Key(255, "number in label files that stands for no class", must.BYTE, built=False,
        idle=NOT_SEGMENTED),
    "DATA.REDUCE_ZERO_LABEL": Key(False, "0 in label files stands for no class, 1 for the first one", built=False,
        idle=NOT_SEGMENTED),

    "DATA.TRAIN_JSON": Key("annotations/instances_train2017.json", "coco: annotations to train on, below DATA_PATH",
        built=False, idle=NOT_COCO),
    "DATA.VAL_JSON": Key("annotations/instances_val2017.json", "coco: annotations to evaluate on, likewise",
        built=False, idle=NOT_COCO),
    "DATA.TRAIN_IMAGES": Key("train2017", "coco: folder of the images that TRAIN_JSON names, likewise",
        built=False, idle=NOT_COCO),
    "DATA.VAL_IMAGES": Key("val2017", "coco: folder of the images that VAL_JSON names, likewise",
        built=False, idle=NOT_COCO),

    "DET.HEAD": Key("mask_rcnn", "mask_rcnn, cascade_mask_rcnn, or without masks faster_rcnn, cascade_rcnn",
        must.NOT_EMPTY, idle=NOT_DETECTED),
    "DET.ARGS": Key(CN(new_allowed=True), "fields of tasks.detection.settings.Settings in upper case: widths, anchors, "
        "samplers, thresholds; for instance ROI_SAMPLES: 128", idle=NOT_DETECTED),
    "DET.POLICY": Key("resize", "images in training: resize, crop (or so in half of them) or jitter (large-scale)",
        must.one_of("resize", "crop", "jitter"), idle=NOT_DETECTED),
    "DET.SCALES": Key([480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "resize, crop: short sides in training, drawn for each image", must.SIDES, kind=int, idle=NOT_DETECTED),
    "DET.MAX_SIZE": Key(1333, "limit of the long side; jitter: side of the square that images are cropped to",
        must.at_least(1), idle=NOT_DETECTED),
    "DET.TEST_SIZE": Key(800, "short side in evaluation", must.at_least(1), idle=NOT_DETECTED),
    "DET.CROP_SCALES": Key([400, 500, 600], "crop: short sides before the crop", must.SIDES, kind=int,
        idle=NOT_DETECTED),
    "DET.CROP_SIZES": Key([384, 600], "crop: [MIN, MAX] of its height and of its width", must.RANGE, kind=int,
        idle=NOT_DETECTED),
    "DET.JITTER": Key([0.1, 2.0], "jitter: [MIN, MAX] factor of the image fitted within MAX_SIZE", must.RATIOS,
        idle=NOT_DETECTED),
    "DET.MASK_AREA": Key("mask", "what counts a found mask as small, medium or large: mask (COCO), box (mmdet 2.11)",
        must.one_of("mask", "box"), idle=NOT_DETECTED),

    "SEG.HEAD": Key("upernet", "upernet or mlp (SegFormer's, for small data and CPUs)",
        must.NOT_EMPTY, idle=NOT_SEGMENTED),
    "SEG.CHANNELS": Key(512, "width of the head", must.at_least(1), idle=NOT_SEGMENTED),
    "SEG.AUX_WEIGHT": Key(0.4, "share of an auxiliary FCN head in the loss; 0: there is none", must.at_least(0),
        idle=NOT_SEGMENTED),
    "SEG.AUX_CHANNELS": Key(256, "width of the auxiliary head", must.at_least(1), idle=NO_AUXILIARY),
    "SEG.DROPOUT": Key(0.1, "probability of dropping a whole channel before the last layer of each head",
        must.FRACTION, idle=NOT_SEGMENTED),
    "SEG.DIVIDE_BY": Key("all", "the summed cross entropy: by all pixels (the reference) or by the counted ones",
        must.one_of("all", "counted"), idle=NOT_SEGMENTED),
    "SEG.CLASS_WEIGHTS": Key([], "of the loss, one for each class; []: all 1", must.WEIGHTS, kind=float,
        idle=NOT_SEGMENTED),
    "SEG.SCALE": Key([2048, 512], "[LONG, SHORT] limits that images are fitted within, keeping their ratio; []: as is",
        must.LIMITS, kind=int, idle=NOT_SEGMENTED),
    "SEG.RATIO": Key([0.5, 2.0], "[MIN, MAX] factor of SCALE in training, before the crop of DATA.IMG_SIZE",
        must.RATIOS, idle=NOT_SEGMENTED),
    "SEG.CAT_MAX_RATIO": Key(0.75, "crops are drawn again where one class covers such a share; 1: any crop",
        must.PROBABILITY, idle=NOT_SEGMENTED),
    "SEG.PHOTOMETRIC": Key(True, "distort brightness, contrast, saturation and hue in training",
        idle=NOT_SEGMENTED),

    "DRLOC.WEIGHT": Key(0.0, "weight of dense relative localisation (published: Swin 0.5, T2T and CvT 0.1); 0: off",
        must.at_least(0), idle="TASK is not classification", built=False),
    "DRLOC.MODE": Key("l1", "l1, ce (classes) or cbr (cycle-back regression)", must.one_of("l1", "ce", "cbr"),
        idle=NO_DRLOC, built=False),
    "DRLOC.PAIRS": Key(64, "pairs of places an image", must.at_least(1), idle=NO_DRLOC, built=False),
    "DRLOC.ABSOLUTE": Key(True, "guess |a - b|; False: the signed difference", idle=NO_DRLOC, built=False),
    "DRLOC.UNIT": Key("cells",
        "of l1: cells of the grid (the published runs), side (divided by the grid's, as in the paper) or span",
        must.one_of("cells", "side", "span"), idle=f"DRLOC.MODE is not l1, {NO_DRLOC}", built=False),
    "DRLOC.POOL": Key(False, "average the map to half its size first (published: 14x14 maps)", idle=NO_DRLOC,
        built=False),
    "DRLOC.WARMUP_EPOCHS": Key(20.0, "epochs in which the weight rises from 0, before it falls to 0 again",
        must.at_least(0), idle=NO_DRLOC, built=False),
    "GUIDANCE.TEACHER": Key("", "locality guidance by a CNN: a checkpoint of a run, or timm/<name>; '': off",
        kind=file_path, idle="TASK is not classification", built=False),
    "GUIDANCE.TEACHER_WEIGHTS": Key("", "file with the weights of timm/<name>; '': timm's own", kind=file_path,
        idle=NO_GUIDANCE, built=False),
    "GUIDANCE.WEIGHT": Key(2.5, "of its loss", must.at_least(0), idle=NO_GUIDANCE, built=False),
    "GUIDANCE.LEVELS": Key([], "levels of the model that are guided; []: evenly spaced ones, up to three", kind=int,
        idle=NO_GUIDANCE, built=False),
    "GUIDANCE.TEACHER_LEVELS": Key([], "levels of the teacher; []: as many of its last ones", kind=int,
        idle=NO_GUIDANCE, built=False),
    "GUIDANCE.BATCH_STATISTICS": Key(True,
        "the teacher's BatchNorm takes the batch's statistics (published: it was left in training mode)",
        idle=NO_GUIDANCE, built=False),
    "DISTILLATION.TEACHER": Key("", "a checkpoint of a run, or timm/<name>; '': no distillation", kind=file_path,
        idle="TASK is not classification", built=False),
    "DISTILLATION.TEACHER_WEIGHTS": Key("", "file with the weights of timm/<name>; '': timm's own", kind=file_path,
        idle=NO_TEACHER, built=False),
    "DISTILLATION.KIND": Key("hard", "hard (the teacher's decision) or soft (its probabilities)",
        must.one_of("hard", "soft"), idle=NO_TEACHER, built=False),
    "DISTILLATION.ALPHA": Key(0.5, "share of the teacher in the loss", must.PROBABILITY, idle=NO_TEACHER, built=False),
    "DISTILLATION.TAU": Key(1.0, "temperature of soft distillation", must.at_least(must.SMALLEST),
        idle=f"DISTILLATION.KIND is hard, {NO_TEACHER}", built=False),
    "DISTILLATION.DIVIDE_BY": Key("elements",
        "soft: the summed divergence, by images times classes (DeiT's code) or by images (its paper)",
        must.one_of("elements", "images"), idle=f"DISTILLATION.KIND is hard, {NO_TEACHER}", built=False),

    "DINO.OUT_DIM": Key(1024, "outputs of the projection head (arXiv 2210.07240; 65536 for ImageNet)", must.at_least(2),
        idle=NOT_DINO, built=False),
    "DINO.LOCAL_CROPS": Key(8, "local crops an image, beside the two global ones", must.at_least(0), idle=NOT_DINO,
        built=False),
    "DINO.LOCAL_SIZE": Key(0, "side of a local crop in pixels; 0: half of DATA.IMG_SIZE", must.at_least(0),
        idle=NOT_DINO, built=False),
    "DINO.GLOBAL_SCALE": Key([0.7, 1.0], "area of a global crop, as a fraction of the image (Tiny-ImageNet: [0.5, 1])",
        must.AREAS, idle=NOT_DINO, built=False),
    "DINO.LOCAL_SCALE": Key([0.2, 0.5], "area of a local crop (Tiny-ImageNet: [0.2, 0.4])", must.AREAS, idle=NOT_DINO,
        built=False),
    "DINO.MOMENTUM": Key(0.996, "of the teacher at the start; it rises to 1 along a cosine", must.PROBABILITY,
        idle=NOT_DINO, built=False),
    "DINO.TEACHER_TEMP": Key(0.07, "temperature of the teacher after WARMUP_EPOCHS", must.at_least(must.SMALLEST),
        idle=NOT_DINO, built=False),
    "DINO.WARMUP_TEACHER_TEMP": Key(0.04, "its temperature at the start, from where it rises linearly",
        must.at_least(must.SMALLEST), idle=NOT_DINO, built=False),
    "DINO.WARMUP_EPOCHS": Key(10, "epochs in which the teacher's temperature rises", must.at_least(0), idle=NOT_DINO,
        built=False),
    "DINO.FREEZE_EPOCHS": Key(1, "first epochs in which the last layer of the head stays as it is", must.at_least(0),
        idle=NOT_DINO, built=False),

    "AUG.REPEATS": Key(1, "repeated augmentation: how often an image comes in a batch, augmented anew each time; an "
        "epoch then sees one image in so many", must.at_least(1), built=False),
    "AUG.RESIZE_FIRST": Key(False,
        "resize images smaller than IMG_SIZE to it (bilinear) before the crop: the paper's recipe"),
    "AUG.CROP": Key("resized", "resized (random area and ratio), padded (zero padding 4*size/32, random crop) or none",
        must.one_of("resized", "padded", "none")),
    "AUG.SCALE": Key([0.08, 1.0], "area of a resized crop, as a fraction of the image", must.AREAS, idle=NOT_RESIZED),
    "AUG.RATIO": Key([3 / 4, 4 / 3], "width / height of a resized crop", must.RATIOS, idle=NOT_RESIZED),
    "AUG.HFLIP": Key(0.5, "probability of a horizontal flip", must.PROBABILITY),
    "AUG.VFLIP": Key(0.0, "probability of a vertical flip", must.PROBABILITY),
    "AUG.COLOR_JITTER": Key(0.4, "strength; without effect while AUTO_AUGMENT is on (timm)", must.at_least(0),
        idle="timm drops it while AUG.AUTO_AUGMENT is set"),
    "AUG.AUTO_AUGMENT": Key("rand-m9-mstd0.5-inc1", "timm's policy string; '' for none", must.POLICY),
    "AUG.REPROB": Key(0.25, "probability of random erasing", must.PROBABILITY),
    "AUG.REMODE": Key("pixel", "erase with: pixel (noise per pixel), rand (one random colour) or const (zero)",
        must.one_of("pixel", "rand", "const"), idle=NOT_ERASED),
    "AUG.RECOUNT": Key(1, "erased rectangles per image", must.at_least(1), idle=NOT_ERASED),
    "AUG.MIXUP": Key(0.8, "alpha of mixup's Beta distribution; 0: no mixup",
        must.at_least(0), idle="AUG.MIXUP_PROB is 0"),
    "AUG.CUTMIX": Key(1.0, "alpha of CutMix's; 0: no CutMix", must.at_least(0),
        idle="AUG.CUTMIX_MINMAX takes its place, or AUG.MIXUP_PROB is 0"),
    "AUG.CUTMIX_MINMAX": Key([], "[MIN, MAX] side ratio of CutMix's box instead of CUTMIX", must.BOX_SIDES, kind=float),
    "AUG.MIXUP_PROB": Key(1.0, "probability that a batch is mixed at all", must.PROBABILITY, idle=NOT_MIXED),
    "AUG.MIXUP_SWITCH_PROB": Key(0.5, "probability of CutMix where both are on", must.PROBABILITY,
        idle="not both of AUG.MIXUP and AUG.CUTMIX are on"),
    "AUG.MIXUP_MODE": Key("batch", "one draw per batch, pair (of images) or elem (image)",
        must.one_of("batch", "pair", "elem"), idle=NOT_MIXED),

    "TRAIN.EPOCHS": Key(300, "epochs, warm-up included: passes over the training set", must.at_least(1), built=False),
    "TRAIN.PASSES_PER_EPOCH": Key(1, "passes over the training set that count as one epoch", must.at_least(1),
        built=False),
    "TRAIN.STEPS": Key(0, "optimizer steps of the whole training instead of EPOCHS; 0: EPOCHS counts",
        must.at_least(0), built=False),
    "TRAIN.WARMUP_EPOCHS": Key(20.0, "epochs (fractions allowed) of linear rise from WARMUP_LR to the base rate",
        must.at_least(0)),
    "TRAIN.WARMUP_STEPS": Key(0, "the same in optimizer steps; 0: WARMUP_EPOCHS counts", must.at_least(0)),
    "TRAIN.WEIGHT_DECAY": Key(0.05, "decoupled for AdamW", must.at_least(0), idle="every parameter is exempt"),
    "TRAIN.NO_WEIGHT_DECAY": Key(["1d", "pos_embed", "cls_token", "relative_position_bias_table", "layer_scale"],
        "exempt: parameters of at most one dimension (1d), and those with such a piece in their names",
        idle="weight decay is 0, or no parameter has such a name"),
    "TRAIN.LAYER_DECAY": Key(1.0, "each layer learns at so much of the next one's rate (fine-tuning); 1: at the same",
        must.SHARE),
    "TRAIN.FREEZE": Key([], "names of parameters or modules that are not trained, with * and ?; '-name' is trained "
        "again: ['*', -head] is linear probing", kind=str),
    "TRAIN.BASE_LR": Key(5e-4, "learning rate after the warm-up, before LR_SCALING", must.at_least(0)),
    "TRAIN.WARMUP_LR": Key(5e-7, "learning rate of the first step", must.at_least(0), idle="there is no warm-up"),
    "TRAIN.MIN_LR": Key(5e-6, "where the cosine, linear or poly schedule ends",
        must.at_least(0), idle="the schedule is constant"),
    "TRAIN.LR_SCALING": Key("none", "the three rates times global batch / LR_SCALING_BATCH (linear) or its root (sqrt)",
        must.one_of("none", "linear", "sqrt")),
    "TRAIN.LR_SCALING_BATCH": Key(512, "global batch for which the rates above are meant when scaling",
        must.at_least(1),
        idle="TRAIN.LR_SCALING is none"),
    "TRAIN.CLIP_GRAD": Key(5.0, "largest norm of all gradients together; 0: no clipping", must.at_least(0)),
    "TRAIN.ACCUMULATION_STEPS": Key(1, "forward passes per optimizer step", must.at_least(1)),
    "TRAIN.USE_CHECKPOINT": Key(False, "recompute activations in the backward pass: less memory, more time"),
    "TRAIN.SYNC_BN": Key("auto", "BatchNorm over all processes: auto (on GPUs), on or off",
        must.one_of("auto", "on", "off"), built=False, idle=ALONE),
    "TRAIN.MAX_SKIPPED_STEPS": Key(0, "steps with a non-finite loss or gradient that are skipped before the run stops",
        must.at_least(0)),
    "TRAIN.AUTO_RESUME": Key(True, "continue from the newest good checkpoint of the run folder", free=True),
    "TRAIN.ALLOW_CHANGES": Key(False, "resume although the configuration differs from the checkpoint's", free=True),
    "TRAIN.LR_SCHEDULER.NAME": Key("cosine", "cosine, linear, poly, step or constant",
        must.one_of("cosine", "linear", "poly", "step", "constant")),
    "TRAIN.LR_SCHEDULER.POWER": Key(1.0, "poly: of the share of steps that are left, counted from the first one",
        must.at_least(0), idle="only LR_SCHEDULER.NAME poly has a power"),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": Key(30, "step: epochs between two decays", must.at_least(1), idle=NO_STEPS),
    "TRAIN.LR_SCHEDULER.MULTISTEPS": Key([], "step: epochs after which it decays; []: every DECAY_EPOCHS", must.RISING,
        kind=float, idle=NO_STEPS),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": Key(0.1, "step: factor of one decay", must.PROBABILITY, idle=NO_STEPS),
    "TRAIN.OPTIMIZER.NAME": Key("adamw", "any optimizer of timm: adamw, sgd, lamb, ...", built=False),
    "TRAIN.OPTIMIZER.EPS": Key(1e-8, "added to Adam's denominator", must.at_least(0), idle=OTHER_OPTIMIZER),
    "TRAIN.OPTIMIZER.BETAS": Key([0.9, 0.999], "Adam's running averages", must.BETAS, idle=OTHER_OPTIMIZER),
    "TRAIN.OPTIMIZER.MOMENTUM": Key(0.9, "of SGD", must.FRACTION, idle=OTHER_OPTIMIZER),
    "TRAIN.EMA.ENABLE": Key(False, "keep an exponential moving average of the weights"),
    "TRAIN.EMA.DECAY": Key(0.9999, "per optimizer step", must.PROBABILITY, idle=NO_AVERAGE),
    "TRAIN.EMA.WARMUP": Key(False, "let the decay rise to DECAY at the start", idle=NO_AVERAGE),

    "AMP.ENABLE": Key(True, "mixed precision"),
    "AMP.TF32": Key(True,
        "on CUDA, products of what stays float32 may round their inputs to 10 bits (TensorFloat-32)",
        built=False, idle=NO_GPU),
    "AMP.RESIDUAL": Key("float32", "tokens between the blocks; bfloat16: half the traffic, each sum rounded to 8 bits",
        must.one_of("float32", "bfloat16")),
    "AMP.DTYPE": Key("auto",
        "auto (bfloat16 where the device has it; on CPUs for large models), bfloat16, float16 (scaled loss) or float32",
        must.one_of("auto", "bfloat16", "float16", "float32"), idle=OFF_AMP),

    "SAVE.EPOCHS": Key(0, "write epoch_N.pth every so many epochs; 0: only last.pth and best.pth",
        must.at_least(0), free=True),
    "SAVE.KEEP": Key(3, "how many epoch_N.pth are kept", must.at_least(1), free=True, idle="SAVE.EPOCHS is 0"),
    "SAVE.MINUTES": Key(0.0, "write last.pth inside an epoch every so many minutes; 0: off",
        must.at_least(0), free=True),
    "SAVE.STEPS": Key(0, "the same, in optimizer steps", must.at_least(0), free=True),

    "TEST.EPOCHS": Key(1, "epochs from one evaluation to the next", must.at_least(1), built=False),
    "TEST.STEPS": Key(0, "the same in optimizer steps, inside epochs too; 0: EPOCHS counts", must.at_least(0),
        built=False),
    "TEST.CROP": Key(True, "resize to IMG_SIZE / 0.875, then centre crop; False: resize to IMG_SIZE"),
    "TEST.MODE": Key("whole", "images of any size in one piece, or slide: in windows of IMG_SIZE",
        must.one_of("whole", "slide"), idle=NOT_SEGMENTED),
    "TEST.STRIDE": Key(2 / 3, "from one window to the next, as a share of IMG_SIZE", must.SHARE,
        idle="TEST.MODE is whole, or TASK is not segmentation"),
    "TEST.SCALES": Key([1.0], "sizes of the image whose probabilities are averaged", must.SCALES, kind=float,
        idle=NOT_SEGMENTED),
    "TEST.FLIP": Key(False, "average with the mirrored image", idle=NOT_SEGMENTED),
    "TEST.WEIGHTS": Key("auto", "evaluate model, ema or auto (ema where there is one)",
        must.one_of("auto", "model", "ema"),
        idle=NO_AVERAGE),
}
# fmt: on
# Keys of older run folders and checkpoints, with the value that is what happens now. None changed what a run computes.
GONE = {"DATA.DECODER": "pil", "MODEL.ARGS.ATTENTION": "plain"}


def default_config():
    """A fresh, changeable CfgNode with every default."""
    config = CN()
    for key, row in KEYS.items():
        *sections, name = key.split(".")
        parent = config
        for section in sections:
            parent = parent.setdefault(section, CN())
        parent[name] = row.default.clone() if isinstance(row.default, CN) else _copied(row.default)
    return config


def check(cfg, origins):
    """Raise ConfigError (64) for the first value out of its range or outside its choices, or at odds with another."""
    must.check_rules(KEYS, {key: value_of(cfg, key) for key in KEYS}, origins)
    must.check_together(cfg, origins)


def value_of(cfg, key):
    """The value of a full dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def changes_results(key):
    """Whether a key must stay as it was when a run is resumed, since another value gives other results."""
    return not (key in KEYS and KEYS[key].free)


def load_config(path, opts=(), flags=()):
    """The frozen configuration of `path` and where each value comes from: `(cfg, {'TRAIN.EPOCHS': 'a.yaml:12'})`.

    Later wins: defaults, BASE files, `path`, `opts` (KEY VALUE KEY VALUE ...), `flags` (dict key -> (value, '--flag')).
    An empty MODEL.NAME becomes the name of the file, so that a saved configuration keeps its run folder.
    Raises ConfigError (64) for anything wrong in it, MissingError (66) for a missing file. Ranges: see `check`.
    """
    cfg, path = default_config(), Path(path).expanduser()
    origins = dict.fromkeys(flat(to_plain(cfg)), "default")
    for leaves in (*_chain(Path(path)), _option_leaves(opts), _flag_leaves(flags)):
        for key, leaf in leaves.items():
            if key not in GONE or leaf.value != GONE[key]:
                _set(cfg, origins, key, leaf)
    if not cfg.MODEL.NAME:
        cfg.MODEL.NAME, origins["MODEL.NAME"] = Path(path).stem, shown_path(path)
    cfg.freeze()
    return cfg, origins


def _chain(path, asked_by="--cfg", children=()):
    """The leaves of every file that `path` builds on, the most basic first, `path` last."""
    if path.resolve() in children:
        names = " -> ".join(p.name for p in (*children[children.index(path.resolve()) :], path))
        raise ConfigError(f"BASE: the files name each other: {names} ({asked_by})")
    leaves = read_leaves(path, asked_by)
    base = leaves.pop("BASE", None)
    chain = []
    for name in _base_names(base):
        chain += _chain(path.parent / Path(name).expanduser(), f"BASE ({base.origin})", (*children, path.resolve()))
    return [*chain, leaves]


def _base_names(leaf):
    """The file names of a BASE entry; none without one."""
    if leaf is None:
        return []
    names = leaf.value if isinstance(leaf.value, list) else [leaf.text]
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or leaf.value is None:
        raise ConfigError(f"BASE: names no file ({leaf.origin}); name one or delete the line")
    return names


def _option_leaves(opts):
    opts = list(opts)
    if len(opts) % 2:
        raise ConfigError(
            f'--opts: takes KEY VALUE pairs, but {opts[-1]!r} is left over; quote values with spaces: "[3, 5]"'
        )
    return {key: parse_value(value, "--opts") for key, value in zip(opts[::2], opts[1::2], strict=True)}


def _flag_leaves(flags):
    return {key: Leaf(value, str(value), flag) for key, (value, flag) in dict(flags).items()}


def _set(cfg, origins, key, leaf):
    """Put one value into its place; its key must exist and its type fit."""
    parent, name = cfg, key
    while "." in name and isinstance(parent.get(name.partition(".")[0]), CN):
        section, _, name = name.partition(".")
        parent = parent[section]
    if parent.is_new_allowed():
        parent[name] = free_value(key, leaf)
    elif name not in parent:
        raise unknown_key(key, leaf, list(origins))
    elif not isinstance(parent[name], CN):
        parent[name] = convert(key, leaf, KEYS[key])
    elif leaf.value == {}:
        return  # a section without entries
    else:
        raise ConfigError(f"{key}: is a section, write its keys below it or delete the line ({leaf.origin})")
    origins[key] = leaf.origin


def to_plain(cfg):
    """Nested dict of plain Python values, for instance to store in a checkpoint."""
    return {key: to_plain(value) if isinstance(value, CN) else _copied(value) for key, value in cfg.items()}


def _copied(value):
    return list(value) if isinstance(value, list) else value


def flat(plain, prefix=""):
    """`{'TRAIN.EPOCHS': 300, ...}` of a nested dict."""
    found = {}
    for key, value in plain.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def completed(plain):
    """A stored configuration with the defaults of keys that did not exist when it was stored, without those GONE."""
    return _merged(to_plain(default_config()), plain)


def _merged(base, changes, prefix=""):
    both = dict(base)
    for key, value in changes.items():
        if isinstance(base.get(key), dict):
            both[key] = _merged(base[key], value, f"{prefix}{key}.")
        elif prefix + key not in GONE:
            both[key] = value
    return both


def from_stored(plain):
    """A changeable CfgNode of a stored configuration; keys that this version does not have are left out."""
    config = default_config()
    _fill(config, completed(plain))
    return config


def _fill(config, plain):
    for key, value in plain.items():
        if isinstance(config.get(key), CN):
            _fill(config[key], value)
        elif key in config or config.is_new_allowed():
            config[key] = _copied(value)


def difference(plain_a, plain_b):
    """`[(key, a, b)]` for every key whose value differs; None stands for a key that one side does not have."""
    a, b = flat(plain_a), flat(plain_b)
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def dump_with_origins(cfg, origins):
    """The whole configuration as YAML that --cfg takes again, each value's origin behind it as a comment."""
    return "".join(f"{line}\n" for line in _dump_lines(to_plain(cfg), origins, ""))


def _dump_lines(plain, origins, prefix):
    indent = "  " * prefix.count(".")
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _dump_lines(value, origins, f"{prefix}{key}.")
        else:
            yield f"{indent}{key}: {as_yaml(value)}".ljust(48) + f"  # {origins.get(prefix + key, 'default')}"
