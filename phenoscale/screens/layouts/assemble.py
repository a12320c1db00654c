"""From files (or planes) with their fields to sites: channels named, z reduced, time chosen.

Every choice is made on purpose: where the files leave more than one, the error lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.screens.layouts.found import INCOMPLETE, PassedOver, some
from phenoscale.screens.layouts.wells import natural_key

SITE_KEY = ["experimental_batch", "plate", "well", "site", "time"]
NO_NUMBER = -1
"""z or time of a file whose name has none."""
PROJECTION = "projection"
"""z rule: the files without a plane, which the microscope projected."""
MAXIMUM = "max"
"""z rule: the pixelwise maximum of all planes."""
ALL_TIMES = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """How files become sites."""

    channels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Channel as files write it -> name, in the wanted order; others are left out. Empty: all."""
    z: str | None = None
    """`max`, `projection` or a plane's number; `RULE,CHANNEL=RULE` where channels differ."""
    times: str | None = None
    """`all`, or time points parted by commas; one site per time point."""
    incomplete: str = "refuse"
    """Sites without all channels and planes: `refuse` them, or `leave_out`."""

    def __post_init__(self) -> None:
        if self.incomplete not in INCOMPLETE:
            raise ValueError(f"incomplete is {self.incomplete!r}; one of {INCOMPLETE} is required.")
        names = list(self.channels.values())
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"The channels are named {names}; each needs a name of its own.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembled:
    """Sites and what they are made of."""

    sites: pd.DataFrame
    """Columns of SITE_KEY; time only where the files have several."""
    paths: npt.NDArray[np.object_]
    """(sites, channels) text: one entry of an index's paths per channel."""
    channels: tuple[str, ...]
    """Names, in the order of `paths`."""
    passed_over: PassedOver
    """(path, reason) of files that were not chosen."""


def assemble(files: pd.DataFrame, choices: Choices) -> Assembled:
    """Makes one site of all files with the same batch, plate, well, site and time.

    Args:
        files: columns experimental_batch, plate, well (text), site, time, z (int, NO_NUMBER where a
            file has none), channel and path (text).
        choices: what to do where there is more than one way.

    Raises:
        ValueError: if a choice is missing or names what is not there, if two files claim one place,
            or if sites are incomplete and `choices` refuse them.
    """
    passed_over: PassedOver = []
    if files["time"].nunique() == 1:
        files = files.assign(time=NO_NUMBER)  # nothing to tell apart
    files = _choose_times(files, choices.times, passed_over)
    files, names = _choose_channels(files, choices.channels, passed_over)
    files = _choose_planes(files, choices.z, passed_over)
    _refuse_twins(files)
    files = _complete(files, names, choices.incomplete, passed_over)
    stacked = _stack_planes(files)
    rank = {written: number for number, written in enumerate(names)}
    stacked = stacked.assign(rank=stacked["channel"].map(rank)).sort_values([*SITE_KEY, "rank"])
    sites = stacked.iloc[:: len(names)][SITE_KEY].reset_index(drop=True)
    if (sites["time"] == NO_NUMBER).all():
        sites = sites.drop(columns="time")
    return Assembled(
        sites=sites,
        paths=stacked["path"].to_numpy(dtype=object).reshape(len(sites), len(names)),
        channels=tuple(names.values()),
        passed_over=passed_over,
    )


def _choose_times(files: pd.DataFrame, times: str | None, passed_over: PassedOver) -> pd.DataFrame:
    found = sorted(set(files["time"]))
    if times == ALL_TIMES or (times is None and len(found) == 1):
        return files
    if times is None:
        raise ValueError(
            f"The files have the time points {some(found, 20)}; choose with --time: one, several "
            "such as 1,2, or all. Each chosen time point becomes a site of its own."
        )
    wanted = _numbers(times, "--time", "time points")
    if absent := sorted(wanted - set(found)):
        raise ValueError(f"--time asks for {absent}; the files have {some(found, 20)}.")
    return _keep(files, files["time"].isin(wanted), "its time point was not chosen", passed_over)


def _choose_channels(
    files: pd.DataFrame, named: Mapping[str, str], passed_over: PassedOver
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Files of the wanted channels, and written -> name in the wanted order."""
    found = sorted(files["channel"].unique(), key=natural_key)
    if not named:
        return files, {channel: channel for channel in found}
    plain = {_without_zeros(channel): channel for channel in found}
    unknown = [channel for channel in named if _without_zeros(channel) not in plain]
    if len(unknown) == len(named):
        raise ValueError(
            f"--channels names {unknown}, the files have the channels {found}. Write them as the "
            "files do, such as 1=DNA,2=ER."
        )
    # A channel that no file has stays: its sites are then incomplete, which is what is the matter.
    names = {plain.get(_without_zeros(c), c): name for c, name in named.items()}
    wanted = files["channel"].isin(list(names))
    return _keep(files, wanted, "its channel was not chosen", passed_over), names


def _choose_planes(files: pd.DataFrame, z: str | None, passed_over: PassedOver) -> pd.DataFrame:
    rules = _z_rules(z, list(files["channel"].unique()))
    kept = []
    for channel, of_channel in files.groupby("channel", sort=False):
        found = sorted(set(of_channel["z"]))
        rule = rules.get(str(channel), rules.get(""))
        if rule is None:
            if len(found) > 1:
                raise ValueError(_which_z(files))
            kept.append(of_channel)
        elif rule == MAXIMUM:
            planes = of_channel["z"] != NO_NUMBER
            reason = "it is a projection, the planes were chosen"
            kept.append(_keep(of_channel, planes, reason, passed_over))
        else:
            number = NO_NUMBER if rule == PROJECTION else int(rule)
            reason = f"z {rule} was chosen"
            kept.append(_keep(of_channel, of_channel["z"] == number, reason, passed_over))
        if kept[-1].empty:
            raise ValueError(
                f"--z {z} leaves no file of channel {channel}. {_which_z(files)} Or name "
                "the wanted channels alone with --channels."
            )
    return pd.concat(kept)


def _z_rules(z: str | None, channels: list[str]) -> dict[str, str]:
    """Rule per channel; the rule of "" holds for the others."""
    rules: dict[str, str] = {}
    for part in (z or "").split(","):
        channel, _, rule = part.rpartition("=")
        if not part:
            continue
        if rule not in (MAXIMUM, PROJECTION) and not rule.isdigit():
            raise ValueError(
                f"--z {z}: {rule!r} is no rule; max, projection or a plane's number is required, "
                "and CHANNEL=RULE for a channel with a rule of its own."
            )
        if channel and channel not in channels:
            raise ValueError(f"--z {z}: the files have no channel {channel!r}, but {channels}.")
        rules[channel] = rule
    return rules


def _which_z(files: pd.DataFrame) -> str:
    lines = []
    for channel in sorted(files["channel"].unique(), key=natural_key):
        found = sorted(set(files["z"][files["channel"] == channel]))
        planes = [number for number in found if number != NO_NUMBER]
        parts = [f"planes {some(planes, 12)}"] if planes else []
        parts += [PROJECTION] if NO_NUMBER in found else []
        lines.append(f"channel {channel}: {' and '.join(parts)}")
    return (
        f"The files have {'; '.join(lines)}. Choose with --z: max (maximum over the planes), a "
        "plane's number, or projection (what the microscope projected); for a channel with a rule "
        "of its own, add CHANNEL=RULE after a comma."
    )


def _refuse_twins(files: pd.DataFrame) -> None:
    twins = files.duplicated([*SITE_KEY, "channel", "z"], keep=False)
    if twins.any():
        first = files[twins].sort_values([*SITE_KEY, "channel", "z"]).iloc[:2]
        raise ValueError(
            f"{int(twins.sum())} files claim the place of another, such as "
            f"{first['path'].iloc[0]!r} and {first['path'].iloc[1]!r}: both are plate "
            f"{first['plate'].iloc[0]}, well {first['well'].iloc[0]}, site "
            f"{first['site'].iloc[0]}, channel {first['channel'].iloc[0]}. Index the folders "
            "apart, or give a template in which {plate} or another field tells them apart."
        )


def _complete(
    files: pd.DataFrame, names: Mapping[str, str], incomplete: str, passed_over: PassedOver
) -> pd.DataFrame:
    """Files of the sites that have every channel, and every plane that others have of it."""
    files = files.sort_values([*SITE_KEY, "channel", "z"], ignore_index=True)
    planes = files.groupby("channel")["z"].nunique()
    whole = len(names) == len(planes) and set(planes.index) == set(names)
    per_site = files.groupby(SITE_KEY, sort=False)["path"].transform("size")
    lacking = per_site != (planes.sum() if whole else -1)
    if not lacking.any():
        return files
    bad = files[lacking]
    missing = [
        (key, _what_lacks(site, names, files))
        for key, site in list(bad.groupby(SITE_KEY, sort=False))[:3]
    ]
    count = len(bad[SITE_KEY].drop_duplicates())
    examples = "; ".join(f"{key[1]} {key[2]} site {key[3]} lacks {what}" for key, what in missing)
    if incomplete == "refuse" or count == len(files[SITE_KEY].drop_duplicates()):
        raise ValueError(
            f"{count} of {len(files[SITE_KEY].drop_duplicates())} sites are incomplete: "
            f"{examples}. Add the files, choose other channels with --channels, or leave such "
            "sites out with --incomplete leave-out."
        )
    return _keep(files, ~lacking, "its site is incomplete", passed_over)


def _what_lacks(site: pd.DataFrame, names: Mapping[str, str], files: pd.DataFrame) -> str:
    absent = [name for written, name in names.items() if written not in set(site["channel"])]
    if absent:
        return f"the channels {absent}"
    for channel, planes in site.groupby("channel")["z"]:
        others = set(files["z"][files["channel"] == channel]) - set(planes)
        if others:
            return f"the planes {sorted(others)} of channel {channel}"
    return "nothing"


def _stack_planes(files: pd.DataFrame) -> pd.DataFrame:
    """One row per site and channel; several planes become one entry, their maximum."""
    key = [*SITE_KEY, "channel"]
    if not files.duplicated(key).any():
        return files
    return files.sort_values([*key, "z"]).groupby(key)["path"].agg("*".join).reset_index()


def _keep(
    files: pd.DataFrame, wanted: pd.Series, reason: str, passed_over: PassedOver
) -> pd.DataFrame:
    passed_over += [(path, reason) for path in files["path"][~wanted]]
    return files[wanted]


def _numbers(text: str, option: str, what: str) -> set[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"{option} {text}: {what} are whole numbers parted by commas.")
    return {int(part) for part in parts}


def _without_zeros(channel: str) -> str:
    return str(int(channel)) if channel.isdigit() else channel
