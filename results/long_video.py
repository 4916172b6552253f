"""Memory of ``clipdepth predict`` over an hour of video with sound.

python results/long_video.py > results/long_video.md

The film has 36,000 small frames (48 x 64, 10 a second) and sound; the tower is tiny and random, as
the frames' way is the same with any. Resident memory is read from /proc as the command runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own tiny host

from clipdepth_plugin import DepthHead
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.files.videos import Frame, Video
from clipdepth_plugin.latency.report import describe, markdown_table
from tests.tiny.command_line import save_tiny_host

SIZE, RATE, SOUND = (48, 64), 10, 16_000
_PARTS = 6


def write_film(path: Path, seconds: int) -> None:
    """A gradient that moves, and a tone for each second."""
    rows_HW, columns_HW = np.mgrid[: SIZE[0], : SIZE[1]]
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        film.height, film.width, film.pix_fmt = *SIZE, "yuv420p"
        voice = container.add_stream("aac", rate=SOUND, layout="mono")
        for second in range(seconds):
            for index in range(second * RATE, (second + 1) * RATE):
                planes = (4 * columns_HW + index, 5 * rows_HW + 2 * index, rows_HW + columns_HW)
                image_HW3 = np.stack(planes, axis=-1).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(image_HW3, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                container.mux(film.encode(frame))
            wave = 0.2 * np.sin(np.arange(SOUND) * (0.1 + second % 7 / 50))
            tone = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
            tone.sample_rate, tone.pts = SOUND, second * SOUND
            container.mux(voice.encode(tone))
        container.mux(film.encode())
        container.mux(voice.encode(None))


def resident(command: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Runs a command: its seconds so far and MiB in memory, each second."""
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("VmRSS"):
                    yield time.monotonic() - began, int(line.split()[1]) / 1024
            time.sleep(1.0)
    if process.returncode:
        raise SystemExit(process.returncode)


def kept(path: Path) -> str:
    """Frames and sound of the video that was written."""
    with Video(path) as video:
        times = [one.time for one in video.items() if isinstance(one, Frame)]
        (sound,) = video.sounds
        last, heard = times[-1] * video.time_base, sound.duration * sound.time_base
    return f"{len(times)} frames, the last at {float(last):.1f} s, {float(heard):.1f} s of sound"


def main() -> None:
    """Measures, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_film(folder / "film.mp4", seconds)
        (folder / "host").mkdir()
        host = save_tiny_host(folder / "host")
        DepthHead.for_host(host, preset="fast", activation="log").save_pretrained(folder / "head")
        given = ("film.mp4", "--host", "host", "--head", "head", "-o", "out")
        paths = [one if one.startswith("-") else str(folder / one) for one in given]
        command = (sys.executable, "-m", "clipdepth_plugin", "predict", *paths)
        samples = list(resident((*command, "--batch-size", "16")))
        written = kept(folder / "out" / "film.colour.mp4")
    whole = samples[-1][0]
    rows = []
    for part in range(_PARTS):
        inside = [mib for at, mib in samples if part <= _PARTS * at / whole <= part + 1]
        rows.append((f"{part + 1} of {_PARTS}", f"{min(inside):.0f}", f"{max(inside):.0f}"))
    print("# An hour of video\n")
    print(
        f"`clipdepth predict` of a film of {seconds} s with sound ({SIZE[0]} x {SIZE[1]}, "
        f"{RATE} frames a second), a tiny random tower, `--batch-size 16`: resident memory.\n"
    )
    print("\n".join(markdown_table(("part of the run", "least, MiB", "most, MiB"), rows)))
    print(f"\nWritten: {written}; the command took {whole:.0f} s.\n")
    seen = describe_environment(("python", "results/long_video.py", *sys.argv[1:]))
    print(describe(seen))


if __name__ == "__main__":
    main()
