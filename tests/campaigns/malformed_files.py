"""Config and pipeline files that are damaged, hostile, or say something else."""

from __future__ import annotations

from tests.campaigns.malformed_case import MARK, cfgtext, edit, pipe

for path in (
    "3x3 / 3x3",
    "9x9 / 3x3 / 3x3 3x3 / 3x3",
    "uniform",
    "uniform 9x9",
    "random",
    "random abc",
    "３x３ / 3x3 / 3x3 3x3 / 3x3",
    "3x3 " * 200000,
    "0 1 2 3 9",
    "0 1 2 3 -1",
    "3x3 / 3x3 / 3x3 3x3 / 3x3 / 3x3",
    "supernet",
    "nosuchstage",
    ";rm -rf x",
    "$(touch x)",
):
    edit(f"PATH {path[:30]!r}", "R", {"PATH": path}, path[:20], "PATH", "searched")
for title, change, tok in [
    ("PATH 5", {"PATH": 5}, "PATH"),
    ("PATH list", {"PATH": ["3x3"]}, "PATH"),
    ("WEIGHTS 5", {"WEIGHTS": 5}, "WEIGHTS"),
    ("WEIGHTS absent file", {"WEIGHTS": "/no/such.pth"}, "/no/such.pth"),
    ("WEIGHTS s3://", {"WEIGHTS": "s3://bucket/x.pth"}, "s3://"),
    ("WEIGHTS http closed port", {"WEIGHTS": "http://127.0.0.1:1/x.pth"}, "127.0.0.1"),
    ("ROW list", {"ROW": ["a"]}, "ROW"),
    ("MERGE search", {"MERGE": ["search"]}, "MERGE"),
    ("MERGE text", {"MERGE": "search"}, "MERGE"),
    ("RANDOM x", {"RANDOM": "x"}, "RANDOM"),
    ("FOLDER ../../escape", {"FOLDER": "../../escape"}, "FOLDER"),
    ("FOLDER absolute", {"FOLDER": "/tmp/absolute"}, "FOLDER"),
    ("FOLDER of supernet", {"FOLDER": "supernet"}, "FOLDER"),
    ("NAME ../../evil", {"NAME": "../../evil"}, "NAME"),
    ("NAME empty", {"NAME": ""}, "NAME"),
    ("NAME 300 characters", {"NAME": "n" * 300}, "n" * 50),
    ("NAME unicode", {"NAME": "ñ😀/x"}, "NAME"),
    ("NAME int", {"NAME": 7}, "NAME"),
    ("NAME null", {"NAME": None}, "NAME"),
    ("OPTS mapping", {"OPTS": {"SEED": 1}}, "OPTS"),
    ("OPTS null", {"OPTS": None}, "OPTS"),
    ("OPTS text", {"OPTS": "SEED 1"}, "OPTS"),
    ("OPTS nested", {"OPTS": [["SEED", 1]]}, "OPTS"),
    ("CONFIG a folder", {"CONFIG": "."}, "CONFIG"),
    ("CONFIG /etc/passwd", {"CONFIG": "/etc/passwd"}, "/etc/passwd"),
    ("CONFIG int", {"CONFIG": 3}, "CONFIG"),
    ("KIND list", {"KIND": ["train"]}, "KIND"),
    ("KIND Train", {"KIND": "Train"}, "KIND"),
]:
    edit(title, "R", change, tok, "searched")
B = "_BASE_: train_ok.yaml\nVERSION: 2\n"
T = MARK
for title, text, *tokens in [
    ("empty file", "", "train.yaml"),
    ("a list", "- a\n- b\n", "train.yaml"),
    ("a number", "5\n", "train.yaml"),
    ("syntax error", "MODEL: [unclosed\n", "train.yaml", "line"),
    ("tabs", "MODEL:\n\tDEVICE: cpu\n", "train.yaml", "line"),
    ("duplicate key", B + "SEED: 1\nSEED: 2\n", "SEED"),
    ("_BASE_ absent", "_BASE_: nothing.yaml\n", "nothing.yaml"),
    ("_BASE_ itself", "_BASE_: train.yaml\nVERSION: 2\n", "train.yaml", "_BASE_"),
    ("_BASE_ cycle of two", "_BASE_: other.yaml\nVERSION: 2\n", "_BASE_", "other.yaml"),
    ("_BASE_ a number", "_BASE_: 5\n", "_BASE_"),
    ("_BASE_ null", "_BASE_:\n", "_BASE_"),
    ("_BASE_ a mapping", "_BASE_: {a: 1}\n", "_BASE_"),
    ("_BASE_ http closed port", "_BASE_: http://127.0.0.1:1/x.yaml\n", "127.0.0.1"),
    ("_BASE_ a folder", "_BASE_: /tmp\n", "/tmp"),
    (
        "billion laughs",
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 9) + "]\n" for i in range(1, 12)),
        "a0",
        "aliases",
    ),
    (
        "billion laughs in a known key",
        B
        + "X: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"Y{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 9) + "]\n" for i in range(1, 9))
        + "DATASETS:\n  REGISTER: *a8\n",
        "REGISTER",
        "aliases",
    ),
    ("cyclic alias", "MODEL: &a\n  DETNAS: *a\nVERSION: 2\n", "MODEL"),
    (
        "!!python/object/apply:os.system",
        B + f"SEED: !!python/object/apply:os.system ['touch {T}']\n",
        "SEED",
        "python",
    ),
    (
        "!!python/object/apply in the _BASE_",
        "_BASE_: evil.yaml\nVERSION: 2\n",
        "evil.yaml",
        "python",
    ),
    ("!!python/name:os.system", B + "SEED: !!python/name:os.system\n", "SEED", "python"),
    ("!!python/tuple", B + "SOLVER: {STEPS: !!python/tuple [3]}\n"),
    ("!!binary", B + "SEED: !!binary aGVsbG8=\n", "SEED"),
    ("timestamp", B + "SEED: 2001-01-01\n", "SEED"),
    ("unknown tag", B + "SEED: !foo 3\n", "SEED", "!foo"),
    ("UTF-16", (B).encode("utf-16"), "train.yaml"),
    ("latin-1 bytes", B.encode() + b"# caf\xe9\n", "train.yaml"),
    ("null bytes", B.encode() + b"\x00\x00", "train.yaml"),
    ("BOM", "\ufeff" + B),
    ("10 MB text", B + "MODEL: {DEVICE: " + "x" * 10**7 + "}\n", "1 MiB"),
    ("NaN", B + "SOLVER: {BASE_LR: .nan}\n", "BASE_LR", "nan"),
    ("inf", B + "SOLVER: {BASE_LR: .inf}\n", "BASE_LR", "inf"),
    ("MODEL null", B + "MODEL:\n", "MODEL"),
    ("MODEL 5", B + "MODEL: 5\n", "MODEL"),
    ("SOLVER list", B + "SOLVER: []\n", "SOLVER"),
    ("number as key", B + "5: 3\n", "5"),
    ("bool as key", B + "yes: 1\n", "yes"),
    ("emoji key", B + "😀: 1\n", "😀"),
    ("unknown nested key", B + "SEARCH: {POPULATON: 3}\n", "POPULATON"),
    ("key of a node as value", B + "SEED: {A: 1}\n", "SEED"),
    ("VERSION text", "_BASE_: train_ok.yaml\nVERSION: two\n", "VERSION"),
    ("VERSION 99", "_BASE_: train_ok.yaml\nVERSION: 99\n", "99"),
    ("no VERSION, old key", "MODEL: {RPN: {FG_IOU_THRESHOLD: 0.7}}\n", "FG_IOU_THRESHOLD"),
    ("deep nesting", B + "SEED: " + "[" * 3000 + "]" * 3000 + "\n", "SEED", "train.yaml"),
    ("REGISTER a text", B + "DATASETS: {REGISTER: [shapes]}\n", "REGISTER"),
    (
        "REGISTER unknown key",
        B
        + "DATASETS: {REGISTER: [{NAME: shapes, FORMAT: coco, IMAGES: a, ANNOTATIONS: b, X: 1}]}\n",
        "X",
        "REGISTER",
    ),
    (
        "REGISTER wrong FORMAT",
        B + "DATASETS: {REGISTER: [{NAME: shapes, FORMAT: yolo}]}\n",
        "FORMAT",
    ),
    ("REGISTER NAME list", B + "DATASETS: {REGISTER: [{NAME: [a], FORMAT: coco}]}\n", "NAME"),
    (
        "REGISTER FORMAT list",
        B + "DATASETS: {REGISTER: [{NAME: shapes, FORMAT: [coco]}]}\n",
        "FORMAT",
    ),
    (
        "REGISTER NAME ../../x",
        B
        + "DATASETS: {REGISTER: [{NAME: ../../x, FORMAT: coco, IMAGES: /tmp, ANNOTATIONS: /tmp/none}], TRAIN: [../../x]}\n",  # noqa: E501
        "none",
    ),
    (
        "REGISTER CLASSES wrong",
        B
        + "DATASETS: {REGISTER: [{NAME: shapes, FORMAT: coco, IMAGES: /tmp, ANNOTATIONS: /tmp/x, CLASSES: [a, a]}]}\n",  # noqa: E501
        "CLASSES",
    ),
]:
    cfgtext(title, text, *tokens)
ok = "STAGES:\n  - {NAME: supernet, KIND: train, CONFIG: train.yaml}\n"
for title, text, *tokens in [
    ("empty", "", "STAGES"),
    ("STAGES empty list", "OUTPUT_DIR: OUT\nSTAGES: []\n", "STAGES"),
    ("STAGES null", "OUTPUT_DIR: OUT\nSTAGES:\n", "STAGES"),
    ("STAGES mapping", "OUTPUT_DIR: OUT\nSTAGES: {NAME: a}\n", "STAGES"),
    ("STAGES of texts", "OUTPUT_DIR: OUT\nSTAGES: [supernet]\n", "supernet"),
    ("TABLE text", "OUTPUT_DIR: OUT\n" + ok + "TABLE: supernet\n", "TABLE"),
    ("TABLE int", "OUTPUT_DIR: OUT\n" + ok + "TABLE: 3\n", "TABLE"),
    ("TABLE null", "OUTPUT_DIR: OUT\n" + ok + "TABLE:\n", "TABLE"),
    ("OUTPUT_DIR null", "OUTPUT_DIR:\n" + ok, "OUTPUT_DIR"),
    ("OUTPUT_DIR 5", "OUTPUT_DIR: 5\n" + ok, "OUTPUT_DIR"),
    ("OUTPUT_DIR list", "OUTPUT_DIR: [a]\n" + ok, "OUTPUT_DIR"),
    ("OUTPUT_DIR a file", "OUTPUT_DIR: /etc/passwd\n" + ok, "/etc/passwd"),
    ("OUTPUT_DIR /proc", "OUTPUT_DIR: /proc/x\n" + ok, "/proc/x"),
    (
        "python tag",
        "OUTPUT_DIR: OUT\n" + ok + f"TABLE: !!python/object/apply:os.system ['touch {T}']\n",
        "pipeline.yaml",
        "python",
    ),
    ("syntax error", "STAGES: [\n", "pipeline.yaml", "line"),
    ("cyclic alias", "OUTPUT_DIR: OUT\nSTAGES: &a [*a]\n", "STAGES", "stage"),
    (
        "billion laughs",
        "OUTPUT_DIR: OUT\nSTAGES:\n - &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f" - &a{i} [" + ",".join([f"*a{i - 1}"] * 9) + "]\n" for i in range(1, 9)),
        "aliases",
    ),
    ("unknown key", "OUTPUT_DIR: OUT\nSTAGE: []\n" + ok, "STAGE"),
    ("binary", b"\x7fELF\x00\x01", "pipeline.yaml"),
]:
    pipe(title, text, *tokens)
pipe("override without value", None, "SEED", cli=["SEED"])
pipe("override of an unknown key", None, "SEEED", cli=["SEEED", "1"])
pipe("override with ill-typed value", None, "MAX_ITER", cli=["SOLVER.MAX_ITER", "[1]"])
pipe("file does not exist", "ABSENT", "absent.yaml")
pipe("--num-gpus 0", None, "num-gpus", "num_gpus", cli=["--num-gpus", "0"])
pipe("--num-gpus -1", None, "num-gpus", "num_gpus", cli=["--num-gpus", "-1"])
pipe("--machine-rank 3", None, "machine-rank", "machine_rank", cli=["--machine-rank", "3"])
pipe(
    "--num-machines 2 without a peer's url",
    None,
    "dist-url",
    "dist_url",
    cli=["--num-machines", "2", "--dist-url", "nonsense"],
)
