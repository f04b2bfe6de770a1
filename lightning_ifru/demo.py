"""The demonstration: train on real ratings, forget a person, a film and wrong labels, and look at what changed."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_ifru.bounded import printable
from lightning_ifru.callback import IFRUCallback
from lightning_ifru.clock import ticks
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError
from lightning_ifru.figures import AFTER, BEFORE
from lightning_ifru.influence import IFRU
from lightning_ifru.keys import throwaway_key
from lightning_ifru.metrics import pair_scores
from lightning_ifru.models import LightGCN, MatrixFactorization
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.sources import read_source, read_text_table
from lightning_ifru.trainer import unlearn

#: MovieLens ratings as they lie in a checkout of the repository.
EMBEDDED = Path(__file__).parents[1] / "examples" / "data" / "ml-latest-small" / "ratings.csv.gz"


@dataclass(frozen=True)
class Story:
    """What the demonstration has planted and will ask to be forgotten."""

    data: InteractionDataModule
    request: UnlearningRequest
    heavy_user: Any
    heavy_ratings: int
    film: Any
    neighbour: Any
    mislabelled: pd.DataFrame


def demo(
    data: Path | None = None,
    model: Literal["lightgcn", "mf"] = "lightgcn",
    seed: int = 0,
    output_dir: Path = Path("demo-output"),
    epochs: int = 50,
    user: str = "userId",
    item: str = "movieId",
    rating: str = "rating",
    threshold: float = 4.0,
) -> UnlearningReport:
    """Train a recommender on ratings, forget a person, a film and 1% wrong labels, and show what changed.

    Args:
        data: CSV of ratings, gzip too; by default the MovieLens ratings of the checkout. Titles are taken from a file
            movies.csv or movies.csv.gz beside it, if there is one.
        model: the recommender to train: LightGCN or matrix factorisation.
        seed: of the initial weights, the split and the wrong labels; from 0 to 4294967295.
        output_dir: where report.json, figure.png, demo.log, metrics.csv and unlearned.ckpt are written.
        epochs: epochs of training.
        user: column of user ids.
        item: column of item ids.
        rating: column of ratings.
        threshold: ratings from here on are positive.
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"got --seed {seed}; wanted a whole number from 0 to {2**32 - 1}: choose another.")
    if epochs < 1:
        raise DataError(f"got --epochs {epochs}; wanted at least 1: there is nothing to forget without training.")
    source = _source(data)
    console = Console(record=True)
    # The logger has a folder of its own, because it writes more than the metrics.
    with _quiet(), throwaway_key(), tempfile.TemporaryDirectory() as scratch:
        lightning.seed_everything(seed, verbose=False)
        story = _plant(read_source(source, user=user, item=item, rating=rating), threshold, seed)
        titles = _titles(source, item)
        _make_writable(output_dir)
        _introduce(console, story, source, titles)

        recommender = _recommender(model, story.data)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[IFRUCallback(IFRU(seed=seed)), _Epochs(console)],
            logger=CSVLogger(scratch, name="", version=""),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
            default_root_dir=output_dir,
        )
        clock = ticks()
        trainer.fit(recommender, datamodule=story.data)
        training = ticks() - clock
        console.print(f"Trained {epochs} epochs in {training:.1f} s. Now forgetting ...")
        before = _Look.at(recommender, story)
        report = unlearn(trainer, story.data, request=story.request)
        after = _Look.at(recommender, story)
        trainer.save_checkpoint(output_dir / "unlearned.ckpt", weights_only=False)
        for logger in trainer.loggers:
            logger.save()
        shutil.copyfile(Path(scratch) / "metrics.csv", output_dir / "metrics.csv")

    _conclude(console, report, before, after, story, titles, training)
    (output_dir / "report.json").write_text(report.to_json() + "\n", encoding="utf-8")
    _figure(report, before, after).savefig(output_dir / "figure.png", dpi=150)
    files = "report.json, figure.png, demo.log, metrics.csv, unlearned.ckpt"
    console.print(f"Written to {output_dir}: {files}", markup=False)
    console.save_text(str(output_dir / "demo.log"))
    return report


@dataclass(frozen=True)
class _Look:
    """What the model says at one moment about the neighbour and about the wrongly labelled pairs."""

    top: list[Any]
    belief: Tensor

    @classmethod
    def at(cls, model: LightGCN | MatrixFactorization, story: Story, k: int = 10) -> _Look:
        data = story.data
        with torch.no_grad():
            model.eval()
            h = model.encode(data.graph())
            row = data.table.users.lookup([story.neighbour])[0]
            candidates = data.candidates  # fewer than k, maybe, where the data are small
            new = candidates[~torch.isin(candidates, data.train.item[data.train.user == row])]
            scores = pair_scores(model.decode, h, torch.full_like(new, row), new + data.num_users)
            top = data.item_ids[new[scores.topk(min(k, len(new))).indices].numpy()]
            pairs = story.mislabelled
            user, item = torch.from_numpy(pairs["row"].to_numpy()), torch.from_numpy(pairs["column"].to_numpy())
            score = torch.sigmoid(pair_scores(model.decode, h, user, item + data.num_users))
            wrong = torch.from_numpy(pairs["wrong"].to_numpy())
        return cls(list(top), torch.where(wrong, score, 1 - score))


class _Epochs(lightning.Callback):
    """One line for every tenth of the training, where no progress bar can be drawn."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        if trainer.progress_bar_callback is None and done % max(1, total // 10) == 0:
            loss = float(trainer.callback_metrics.get("val_loss", torch.nan))
            self.console.print(f"epoch {done:>3} of {total}   validation loss {loss:.4f}")


def _source(data: Path | None) -> Path:
    if data is not None:
        return data
    if not EMBEDDED.exists():
        raise DataError(
            "the demo got no data: MovieLens ratings come with the repository's checkout, not with the installed "
            "package; pass a CSV of ratings with --data, and its columns with --user, --item and --rating."
        )
    return EMBEDDED


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(
            f"nothing can be written to {directory} ({error.strerror}); choose another directory with --output_dir."
        ) from error


def _plant(frame: pd.DataFrame, threshold: float, seed: int) -> Story:
    """Turn 1% of the ratings around, and choose whom and what to forget."""
    frame = frame.drop_duplicates(["user", "item"], keep="last", ignore_index=True)
    liked = frame["rating"].to_numpy() >= threshold
    if not liked.any():
        raise DataError(
            f"none of the ratings reaches --threshold {threshold:g}, they go from {frame['rating'].min():g} to "
            f"{frame['rating'].max():g}; choose one that some of them reach."
        )
    wrong = np.random.default_rng(seed).choice(len(frame), max(1, len(frame) // 100), replace=False)
    flipped = liked.copy()
    flipped[wrong] = ~flipped[wrong]
    columns = {"user": frame["user"].to_numpy(), "item": frame["item"].to_numpy(), "liked": flipped.astype(float)}
    data = InteractionDataModule(columns, rating="liked", threshold=0.5, seed=seed)

    ratings = frame["user"].value_counts()
    heavy, film = ratings.index[0], frame["item"].value_counts().index[0]
    other = frame[~frame.index.isin(wrong)]
    other = other[(other["item"] != film) & (other["user"] != heavy)]
    if other.empty:
        raise DataError(
            f"got ratings of {frame['item'].nunique()} items by {ratings.size} users, of which none would be left; "
            "pass data of several users and items with --data."
        )
    pairs = list(zip(frame["user"].iloc[wrong], frame["item"].iloc[wrong], strict=True))
    # Judged are those of which user and item stay: the rows of the erased are drawn anew and believe nothing.
    judged = pd.DataFrame({"user": [p[0] for p in pairs], "item": [p[1] for p in pairs], "wrong": flipped[wrong]})
    judged = judged[judged["user"].isin(other["user"]) & judged["item"].isin(other["item"])]
    row, column = data.table.users.lookup(judged["user"]), data.table.items.lookup(judged["item"])
    trained = pd.MultiIndex.from_arrays([data.train.user.numpy(), data.train.item.numpy()])
    judged = judged.assign(row=row, column=column)[pd.MultiIndex.from_arrays([row, column]).isin(trained)]
    return Story(
        data=data,
        request=UnlearningRequest(users=[heavy], items=[film], interactions=pairs),
        heavy_user=heavy,
        heavy_ratings=int(ratings.iloc[0]),
        film=film,
        neighbour=_neighbour(frame[liked], heavy, other["user"]),
        mislabelled=judged,
    )


def _neighbour(liked: pd.DataFrame, user: Any, others: pd.Series[Any]) -> Any:
    """Of some others the one whose liked items are most similar (cosine) to those of ``user``."""
    items = liked.loc[liked["user"] == user, "item"]
    shared = liked[liked["item"].isin(items) & liked["user"].isin(others)]["user"].value_counts()
    if shared.empty:
        return others.iloc[0]
    return (shared / liked["user"].value_counts().reindex(shared.index) ** 0.5).idxmax()


def _titles(source: Path, item: str) -> dict[str, str]:
    for name in ("movies.csv", "movies.csv.gz"):
        path = source.parent / name
        if path.exists():
            movies = read_text_table(path)
            if {item, "title"} <= set(movies):
                return dict(zip(movies[item], map(printable, movies["title"]), strict=True))
    return {}


def _recommender(name: Literal["lightgcn", "mf"], data: InteractionDataModule) -> LightGCN | MatrixFactorization:
    users, items = data.num_users, data.num_items
    if name == "lightgcn":
        return LightGCN(users, items, embedding_dim=64, num_layers=2, loss="bce", lr=1e-2)
    return MatrixFactorization(users, items, embedding_dim=64, loss="bce", lr=1e-2)


def _introduce(console: Console, story: Story, source: Path, titles: dict[str, str]) -> None:
    data = story.data
    console.rule("lightning-ifru: a recommender that forgets")
    console.print(
        f"{source.name}: {len(data.table):,} ratings of {data.num_items:,} items by {data.num_users:,} users.\n"
        f"To be forgotten: user {printable(str(story.heavy_user))} with {story.heavy_ratings:,} ratings, the film "
        f"{titles.get(str(story.film), story.film)!r}, and {len(story.request.interactions):,} ratings (1%) "
        "that were turned around on purpose before training.\n",
        markup=False,  # titles and ids are text, whatever brackets they have
    )


def _conclude(
    console: Console,
    report: UnlearningReport,
    before: _Look,
    after: _Look,
    story: Story,
    titles: dict[str, str],
    training: float,
) -> None:
    console.print(report)
    forgetting = report.seconds["total"]
    table = Table(title="In a sentence each", show_header=False, title_justify="left")
    table.add_column()
    table.add_row(
        f"Forgetting took {forgetting:.1f} s, including evaluation before and after; training took {training:.1f} s, "
        f"{training / forgetting:.1f} times as long."
    )
    if len(before.belief):
        table.add_row(
            f"Belief in the {len(before.belief):,} wrong labels the model was trained on: "
            f"{float(before.belief.mean()):.0%} before, {float(after.belief.mean()):.0%} after."
        )
    if report.residual_fell is not None:
        table.add_row(f"Of the pull that was to be removed, {1 / report.residual_fell:.0%} is left.")
    console.print(table)

    shown = max(len(before.top), len(after.top))
    top = f"Top {'ten' if shown == 10 else shown}"
    whose = escape(printable(str(story.neighbour)))
    films = Table(title=f"{top} for user {whose}, whose taste is nearest to that of the one who left")
    films.add_column("", width=2)
    for heading in ("before", "after"):
        films.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=(console.width - 12) // 2)
    for place, (old, new) in enumerate(zip_longest(before.top, after.top, fillvalue=""), start=1):
        cells = [
            Text(titles.get(str(one), printable(str(one))), style="" if one in others else style)
            for one, others, style in ((old, after.top, "red"), (new, before.top, "green"))
        ]
        films.add_row(str(place), *cells)
    console.print(films)


def _figure(report: UnlearningReport, before: _Look, after: _Look) -> Figure:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3.4))
    report.draw_residual(left)
    bins = np.linspace(0, 1, 26).tolist()
    for look, label, colour in ((before, "before", BEFORE), (after, "after", AFTER)):
        middle.hist(look.belief.tolist(), bins=bins, alpha=0.65, label=label, color=colour)
        if len(look.belief):
            middle.axvline(float(look.belief.mean()), color=colour, linestyle="--", linewidth=1)
    middle.set(title="belief in the wrong labels", xlabel="predicted probability of the label", ylabel="ratings")
    middle.legend(frameon=False)
    report.draw_metrics(right)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice to developers out of a demonstration."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
