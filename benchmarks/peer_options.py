"""The command line of peers.py."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from interactions import datasets_directory
from options import add_report_options, checked_options, chosen, option_parser

from p2rec_core.settings.sequence_model import EncoderSettings
from storage.datasets import DATASETS

PARTS = ("limits", "ingest", "load", "evaluate", "pace", "train")
BACKBONES = ("sasrec", "gru4rec", "caser", "fmlp_rec")
ENVIRONMENT = Path(__file__).parents[1] / "build" / "peers" / "recbole"
WANTED_EPOCHS = 10
"""Epochs of the other side that the ratios to reach are about."""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with what depends on ``--quick`` and on the machine filled in."""
    parser = option_parser("Measure P2Rec beside RecBole.", writes="peers.md and peers.json", parts=PARTS)
    add_report_options(parser)
    parser.add_argument("--quick", action="store_true", help="minutes: the sample, SASRec, one epoch of RecBole")
    parser.add_argument("--backbones", help=f"which of {','.join(BACKBONES)} to train")
    parser.add_argument("--dataset", choices=DATASETS, help="to train and evaluate on")
    parser.add_argument("--load-dataset", choices=DATASETS, help="to load")
    parser.add_argument("--users", type=int, help="keep the first so many users of a data set")
    parser.add_argument("--epochs", type=int, help="epochs of the other side; its NDCG@10 after the last is the goal")
    parser.add_argument("--our-epochs", type=int, help="break P2Rec's training off after so many epochs")
    parser.add_argument("--rounds", type=int, help="pairs of runs of load and evaluate")
    parser.add_argument("--train-rounds", type=int, default=1, help="runs of the other side's training")
    parser.add_argument("--caser-length", type=int, help="how far back RecBole's Caser reads; as far as P2Rec's")
    parser.add_argument("--width", type=int, default=EncoderSettings().hidden_size, help="d of the models to train")
    parser.add_argument("--pace-widths", help="widths d to take the pace of steps at, such as 64,256")
    parser.add_argument("--pace-seconds", type=int, default=30, help="seconds of steps that tell a pace")
    parser.add_argument("--ingest-millions", help="millions of drawn interactions to ingest, such as 1,3,10")
    parser.add_argument("--peer-environment", type=Path, default=ENVIRONMENT, help="where RecBole is installed")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter to make that with")
    whole = ("users", "epochs", "our_epochs", "rounds", "train_rounds", "caser_length", "width", "pace_seconds")
    options = checked_options(parser, arguments, whole=whole)
    real = datasets_directory() is not None and not options.quick
    options.dataset = options.dataset or ("beauty" if real else "sample")
    options.load_dataset = options.load_dataset or ("ml-1m" if real else options.dataset)
    options.epochs = options.epochs or (1 if options.quick else WANTED_EPOCHS)
    options.rounds = options.rounds or (2 if options.quick else 4)
    wanted = options.backbones or ("sasrec" if options.quick else ",".join(BACKBONES))
    options.backbones = chosen(parser, "backbone", wanted, BACKBONES)
    options.caser_length = options.caser_length or EncoderSettings(backbone="caser").window
    options.pace_widths = (options.pace_widths or (f"{options.width}" if options.quick else "64,256")).split(",")
    for width in options.pace_widths:
        if not width.isdigit() or int(width) < 1:
            parser.error(f"--pace-widths has {width!r}; it takes whole numbers from 1 on, such as 64,256")
    options.ingest_millions = (options.ingest_millions or ("0.1" if options.quick else "1,3,10")).split(",")
    for millions in options.ingest_millions:
        if not millions.replace(".", "", 1).isdigit() or float(millions) <= 0:
            parser.error(f"--ingest-millions has {millions!r}; it takes positive numbers, such as 1,3,10")
    return options
