"""The data benchmark's peers, each used as its authors advise, at its best for random crops.

Every peer reads a site once for `crops_per_read` crops, as our own path does, and delivers batches
of turned uint8 crops. Packed formats hold whole sites: raw, or compressed by the codec that the
format's users take. Peers with worker processes get two, kept alive between runs, and their crops
are cut straight into shared memory, which spares them the copy that collating costs.

Legend: S sites, C channels, H W pixels, R reads, k crops of one read, B crops, s side of a crop.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_cases import Case, Reads, Scale, decode_site, looked_up, tables

Pixels = npt.NDArray[np.uint8]
Run = Callable[[], Iterator[Pixels]]
"""One pass over all reads: batches of crops, uint8 (B, C, s, s)."""

WORKERS = 2
_START = "fork"  # torch's default on Linux, which a spawned parent would change
_SITES_PER_SHARD = 8


@dataclasses.dataclass(frozen=True)
class Job:
    """What a way needs to run: the case, its files and its crops."""

    case: Case
    """The case."""
    folder: Path
    """Holds `screen`, the image files, and a folder of its own for each packed format."""
    reads: Reads
    """The crops, grouped."""
    scale: Scale | None
    """(C, 2) low and high grey value of each channel of 16-bit sites; None for uint8."""
    truth: Path
    """The uint8 sites, (S, C, H, W), as an npy file."""

    def sites(self) -> Pixels:
        """(S, C, H, W) uint8, mapped, for those who pack them."""
        return np.load(self.truth, mmap_mode="r")

    def empty(self, reads: int) -> tuple[int, int, int, int]:
        """Shape of a batch of that many reads."""
        size = self.case.crop_px
        return reads * self.reads.top.shape[1], self.case.channels, size, size


def cut_into(
    out: Pixels,
    at: int,
    image: npt.NDArray[np.generic],
    job: Job,
    read: int,
    table: Pixels | None = None,
) -> None:
    """Writes the k crops of one read to `out[at:]`; image is (C, H, W), table as of `tables`."""
    size = job.case.crop_px
    corners = zip(job.reads.top[read].tolist(), job.reads.left[read].tolist(), strict=True)
    for i, (top, left) in enumerate(corners):
        window = image[:, top : top + size, left : left + size]
        out[at + i] = window if table is None else looked_up(table, window)


class SiteDataset(Dataset[torch.Tensor]):
    """One item is one read; a batch of them is cut into one tensor in shared memory."""

    def __init__(
        self,
        job: Job,
        read_site: Callable[[int], npt.NDArray[np.generic]],
        table: Pixels | None = None,
    ) -> None:
        self.job = job
        self.read_site = read_site
        self.table = table

    def __getitems__(self, numbers: Sequence[int]) -> torch.Tensor:
        """Crops (B, C, s, s) of these reads."""
        batch = shared(self.job.empty(len(numbers)))
        out, k = batch.numpy(), self.job.reads.top.shape[1]
        for i, number in enumerate(numbers):
            image = self.read_site(int(self.job.reads.site[number]))
            cut_into(out, i * k, image, self.job, number, self.table)
        return batch


def shared(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialized uint8 tensor in shared memory, made as torch's own collation makes it."""
    size = int(np.prod(shape))
    storage: Any = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def loader(
    job: Job,
    read_site: Callable[[int], npt.NDArray[np.generic]],
    table: Pixels | None = None,
) -> Run:
    """A torch DataLoader over the reads, in their order."""
    batches = [batch.tolist() for batch in job.reads.batches(job.case.global_batch)]
    feed = DataLoader(
        SiteDataset(job, read_site, table),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context=_START,
    )
    return lambda: (batch.numpy() for batch in feed)


def _as_it_is(batch: Any) -> Any:
    return batch


# --- torch DataLoader over the files --------------------------------------------------------------


def torch_raw(job: Job) -> Run:
    """Decodes every file of a site with imagecodecs; of 16-bit sites the crops are scaled."""
    case, root = job.case, job.folder / "screen"
    table = None if job.scale is None else tables(job.scale)
    return loader(job, lambda site: decode_site(case, root, site), table)


# --- torch DataLoader over Zarr -------------------------------------------------------------------


def zarr_sites(job: Job) -> Run:
    """One uncompressed chunk per site: the fewest reads for several crops of one site."""
    return _zarr(job, "zarr_sites", None)


def zarr_blosc(job: Job) -> Run:
    """One chunk per site, compressed with Blosc, LZ4 and bit shuffling."""
    import zarr.codecs

    codec = zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    return _zarr(job, "zarr_blosc", codec)


def _zarr(job: Job, name: str, codec: Any) -> Run:
    import zarr

    sites, path = job.sites(), job.folder / name
    if not path.exists():
        array = zarr.create_array(
            path,
            shape=sites.shape,
            dtype="uint8",
            chunks=(1, *sites.shape[1:]),
            compressors=codec,
        )
        for site in range(len(sites)):
            array[site] = sites[site]
    opened: Any = zarr.open_array(path, mode="r")
    return loader(job, lambda site: opened[site])


# --- streaming (the community's fork of MosaicML's) -----------------------------------------------


def streaming_raw(job: Job) -> Run:
    """MDS shards of raw sites, opened by LocalDataset, read by number in a torch DataLoader."""
    return _streaming(job, "streaming_raw", _RAW)


def streaming_lz4(job: Job) -> Run:
    """MDS shards of sites compressed one by one with LZ4."""
    return _streaming(job, "streaming_lz4", _lz4(job))


def _streaming(job: Job, name: str, codec: Codec) -> Run:
    from streaming import LocalDataset, MDSWriter

    sites, path = job.sites(), job.folder / name
    if not path.exists():
        with MDSWriter(out=str(path), columns={"site": "bytes"}) as writer:
            for site in sites:
                writer.write({"site": bytes(codec.encode(site.tobytes()))})
    opened, shape = LocalDataset(str(path)), sites.shape[1:]
    return loader(job, lambda site: as_site(codec.decode(opened[site]["site"]), shape))


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a site lies in a record."""

    encode: Callable[[bytes], Any]
    """Pixels to record."""
    decode: Callable[[bytes], Any]
    """Record to pixels."""


_RAW = Codec(bytes, bytes)


def _lz4(job: Job) -> Codec:
    size = job.case.channels * job.case.site_px**2  # known, so that LZ4 does not have to guess it
    return Codec(imagecodecs.lz4_encode, lambda data: imagecodecs.lz4_decode(data, out=size))


def as_site(data: bytes, shape: tuple[int, ...]) -> Pixels:
    """Bytes as (C, H, W), without a copy."""
    return np.frombuffer(data, np.uint8).reshape(shape)


# --- webdataset -----------------------------------------------------------------------------------


def webdataset_raw(job: Job) -> Run:
    """Tar shards of raw sites."""
    return _webdataset(job, "webdataset_raw", _RAW)


def webdataset_lz4(job: Job) -> Run:
    """Tar shards of sites compressed one by one with LZ4."""
    return _webdataset(job, "webdataset_lz4", _lz4(job))


def _webdataset(job: Job, name: str, codec: Codec) -> Run:
    import webdataset as wds

    sites, path = job.sites(), job.folder / name
    if not path.exists():
        path.mkdir()
        per_shard = max(1, min(_SITES_PER_SHARD, len(sites) // WORKERS))
        for first in range(0, len(sites), per_shard):
            with tarfile.open(path / f"{first:05d}.tar", "w") as shard:
                for site in range(first, min(first + per_shard, len(sites))):
                    data = bytes(codec.encode(sites[site].tobytes()))
                    member = tarfile.TarInfo(f"{site:05d}.site")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    visits = len(job.reads) // len(sites)
    # Shards are dealt to the workers in turn, so with a fixed order a site stays with its worker,
    # which counts the visits; samples are shuffled in a buffer of bytes.
    pipeline = (
        wds.WebDataset(sorted(map(str, path.iterdir())) * visits, shardshuffle=False)
        .shuffle(2 * _SITES_PER_SHARD)
        .batched(
            max(1, job.case.global_batch // job.case.crops_per_read),
            collation_fn=_VisitCutter(job, codec, sites.shape[1:]),
        )
    )
    feed = wds.WebLoader(
        pipeline,
        batch_size=None,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context=_START,
    )
    return lambda: (batch.numpy() for batch in feed)


class _VisitCutter:
    """Cuts a batch from samples that come in any order: the n-th visit of a site, its n-th read."""

    def __init__(self, job: Job, codec: Codec, shape: tuple[int, ...]) -> None:
        self.job, self.codec, self.shape = job, codec, shape
        self.reads = job.reads.of_site()
        self.seen = [0] * len(self.reads)

    def __call__(self, samples: Sequence[dict[str, bytes]]) -> torch.Tensor:
        """Crops (B, C, s, s) of the samples."""
        batch = shared(self.job.empty(len(samples)))
        out, k = batch.numpy(), self.job.reads.top.shape[1]
        for i, sample in enumerate(samples):
            site = int(sample["__key__"])
            read = self.reads[site][self.seen[site] % len(self.reads[site])]
            self.seen[site] += 1
            cut_into(
                out, i * k, as_site(self.codec.decode(sample["site"]), self.shape), self.job, read
            )
        return batch


# --- grain ----------------------------------------------------------------------------------------


def grain_raw(job: Job) -> Run:
    """ArrayRecord of raw sites."""
    return _grain(job, "grain_raw", _RAW)


def grain_lz4(job: Job) -> Run:
    """ArrayRecord of sites compressed one by one with LZ4."""
    return _grain(job, "grain_lz4", _lz4(job))


def _grain(job: Job, name: str, codec: Codec) -> Run:
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    sites, path = job.sites(), job.folder / name
    if not path.exists():
        # One record to a group, as random access wants it; the records are compressed already.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for site in sites:
            writer.write(bytes(codec.encode(site.tobytes())))
        writer.close()
    source, shape = grain.sources.ArrayRecordDataSource(str(path)), sites.shape[1:]
    k = job.reads.top.shape[1]

    def read(number: int) -> tuple[int, bytes]:
        return number, source[int(job.reads.site[number])]

    def cut(items: Sequence[tuple[int, bytes]]) -> Pixels:
        out = np.empty(job.empty(len(items)), np.uint8)
        for i, (number, data) in enumerate(items):
            cut_into(out, i * k, as_site(codec.decode(data), shape), job, number)
        return out

    # Threads, not processes: grain's own default, and the cheaper one here, for nothing crosses
    # from process to process.
    dataset = (
        grain.MapDataset.range(len(job.reads))
        .map(read)
        .batch(max(1, job.case.global_batch // k), batch_fn=cut)
    )
    options = grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=2 * WORKERS)
    return lambda: iter(dataset.to_iter_dataset(options))
