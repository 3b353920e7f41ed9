"""The figures of the pools: how fast they were over time, and what loading the models cost."""

import altair
import numpy as np

from ..spool.progress import Moment
from .charts import BLUE, ORANGE, PALETTE, WIDTH, Chart, Choices, Values, chart_of, colours_of
from .tally import PoolTally, Tally

POOLS = 6
TIME_BINS = 60


def throughput(tally: Tally, choices: Choices) -> Chart | str:
    """Tokens per second and busy share of the devices over the life of each pool."""
    known = [pool for pool in tally.pools.values() if len(pool.moments) > 1]
    pools = sorted(known, key=lambda pool: pool.tokens, reverse=True)[:POOLS]
    values = [row for pool in pools for row in _pace(pool)]
    if not values:
        return "No pool of these samples left its history."
    names = [_pool_name(pool) for pool in sorted(pools, key=lambda pool: pool.moments[0].time_s)]
    colours = colours_of("pool", dict(zip(names, PALETTE, strict=False)), "pool")
    legend = colours.legend(orient="top", columns=1, labelLimit=WIDTH) if len(names) > 1 else colours.legend(None)
    minutes = max(row["seconds"] for row in values) > 600
    if minutes:
        values = [{**row, "seconds": row["seconds"] / 60} for row in values]
    unit = "min" if minutes else "s"
    base = (
        chart_of(values, width=WIDTH, height=130)
        .mark_line(interpolate="step-after")
        .encode(x=altair.X("seconds:Q", title=f"time since the pool was ready, {unit}").scale(nice=False), color=legend)
    )
    above = base.encode(y=altair.Y("tokens_per_s:Q", title="tokens per second").axis(format="~s"))
    below = base.encode(
        y=altair.Y("busy:Q", title="devices at work").axis(format="%").scale(domainMin=0, domainMax=1, clamp=True)
    )
    return altair.vconcat(above, below)


def load(tally: Tally, choices: Choices) -> Chart | str:
    """Seconds of loading models and of work, as they were and as they would be with a load in every sample."""
    pools = tally.pools.values()
    work_s = sum(pool.device_s for pool in pools)
    once_s = sum(pool.load_s for pool in pools)
    each_s = sum(pool.load_s * pool.samples for pool in pools)
    number = len(tally.pools)
    samples = sum(pool.samples for pool in pools)
    rows = {
        f"this run: {number} load{'' if number == 1 else 's'}": (once_s, work_s),
        f"a load in each of {samples:,} sample{'' if samples == 1 else 's'}": (each_s, work_s),
    }
    values = [
        {"way": way, "seconds": round(seconds, 3), "part": part, "order": order}
        for way, pair in rows.items()
        for order, (part, seconds) in enumerate(zip(("loading models", "embedding"), pair, strict=True))
    ]
    y = altair.Y("way:N", sort=list(rows), title=None)
    bars = (
        chart_of(values, width=WIDTH - 120)
        .mark_bar()
        .encode(
            x=altair.X("seconds:Q", stack="zero", title="seconds on a device").axis(tickCount=5),
            y=y,
            color=colours_of("part", {"loading models": ORANGE, "embedding": BLUE}, "").legend(orient="top"),
            order="order:Q",
        )
    )
    shares = [{"way": way, "end": sum(pair), "text": _share(*pair)} for way, pair in rows.items()]
    texts = chart_of(shares).mark_text(align="left", dx=4).encode(x="end:Q", y=y, text="text:N")
    return bars + texts


def _share(load_s: float, work_s: float) -> str:
    return f"{load_s / (load_s + work_s):.0%} loading" if load_s + work_s else ""


def _pace(pool: PoolTally) -> Values:
    """Tokens/s and busy share in bins of the pool's life; work between two moments is taken to be even."""
    times, devices, tokens, device_s = (
        np.array(column, float) for column in zip(*map(_numbers, pool.moments), strict=True)
    )
    edges = np.linspace(times[0], times[-1], min(TIME_BINS, max(2, int(times[-1] - times[0]))) + 1)
    width = float(edges[1] - edges[0])
    if width <= 0:
        return []
    rates = np.diff(np.interp(edges, times, tokens)) / width
    present = np.interp((edges[:-1] + edges[1:]) / 2, times, devices)
    busy = np.diff(np.interp(edges, times, device_s)) / width / np.maximum(present, 1)
    columns = (edges - times[0], [*rates, rates[-1]], [*busy, busy[-1]])
    return [
        {
            "pool": _pool_name(pool),
            "seconds": round(float(at), 2),
            "tokens_per_s": round(float(rate), 1),
            "busy": round(float(share), 4),
        }
        for at, rate, share in zip(*columns, strict=True)
    ]


def _numbers(moment: Moment) -> tuple[float, int, int, float]:
    return moment.time_s, moment.devices, moment.tokens, moment.device_s


def _pool_name(pool: PoolTally) -> str:
    return f"{pool.name} ({pool.devices})"
