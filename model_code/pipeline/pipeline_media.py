"""Images, sound and video, from what a request carries: bytes, base64 or a data URL. Nothing is fetched, and no path of
this machine is read. The size that a file unpacks to is checked before it is unpacked."""

import base64
import binascii
import io
import math
from typing import Any

import numpy as np
import torch

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_CHANNELS = 16
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # samples a second


def decoded(value: Any, name: str, what: str) -> bytes:
    """The bytes of a value of the request's JSON: base64, or a data URL. Raises ValueError."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be {what} as base64 or as a data URL, not {type(value).__name__}.")
    if value[:8].lower().startswith(("http://", "https://", "file://", "s3://")):
        raise ValueError(f"{name} is a URL, and nothing is fetched here. Send {what} itself: as base64 or a data URL.")
    if value[:5].lower() == "data:":
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError(f"{name} is a data URL without base64. Write data:TYPE;base64,...")
    try:
        return base64.b64decode("".join(value.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{name} is not {what}: it is not valid base64.") from None


def image(value: Any, name: str, max_pixels: int) -> Any:
    """An image (PIL, RGB, turned as its EXIF says). Raises ValueError."""
    from PIL import Image, ImageOps

    if isinstance(value, dict) and set(value) == {"image"}:
        value = value["image"]
    data = decoded(value, name, "an image")
    try:
        opened = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        width, height = opened.size
        if width * height > max_pixels:
            raise ValueError(f"{name} has {width} x {height} pixels; at most {max_pixels} are read.")
        return ImageOps.exif_transpose(opened).convert("RGB")
    except ValueError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others for a broken file
        raise ValueError(f"{name} cannot be read as an image ({', '.join(IMAGE_FORMATS)}): {error}.") from None


def audio(value: Any, name: str, rate: int, max_seconds: float) -> np.ndarray:
    """One channel of sound at `rate` samples a second (float32, from -1 to 1). Raises ValueError."""
    if isinstance(value, dict):
        samples, own_rate = _samples(value, name)
    else:
        samples, own_rate = _read(decoded(value, name, "sound"), name, max_seconds)
    if len(samples) == 0:
        raise ValueError(f"{name} holds no sound.")
    if len(samples) > max_seconds * own_rate:
        raise ValueError(f"{name} is {len(samples) / own_rate:.0f} seconds long; at most {max_seconds:g} are read.")
    return resample(samples, own_rate, rate)


def raw_audio(data: bytes, rate: int, channels: int) -> dict[str, Any]:
    """audio/L16: 16 bits a sample, the high byte first (RFC 2586)."""
    if len(data) % (2 * channels):
        raise ValueError("The body is not whole samples of audio/L16.")
    samples = np.frombuffer(data, ">i2").astype(np.float32) / 32768
    return {"raw": samples.reshape(-1, channels).mean(axis=1), "sampling_rate": rate}


def _samples(value: dict[str, Any], name: str) -> tuple[np.ndarray, int]:
    raw = value.get("raw", value.get("array"))
    rate = value.get("sampling_rate")
    if raw is None or rate is None or set(value) - {"raw", "array", "sampling_rate"}:
        raise ValueError(f'{name} must be sound, or {{"raw": [numbers], "sampling_rate": 16000}}.')
    _check_rate(rate, name)
    try:
        samples = np.asarray(raw, np.float32)
    except (TypeError, ValueError):
        samples = np.zeros((0, 0), np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"{name}: raw must be a list of numbers, one channel.")
    return samples, rate


def _check_rate(rate: Any, name: str) -> None:
    if not isinstance(rate, int) or isinstance(rate, bool) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"{name}: the sampling rate must be {LOWEST_RATE} to {HIGHEST_RATE} a second, not {rate!r}.")


def _read(data: bytes, name: str, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the library is there, its C part is not
        return _read_wave(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_rate(file.samplerate, name)
            if file.channels > MAX_CHANNELS:
                raise ValueError(f"{name} has {file.channels} channels; at most {MAX_CHANNELS} are read.")
            # One sample more than is allowed tells that there are more, whatever the header says.
            return file.read(int(max_seconds * file.samplerate) + 1, "float32", always_2d=True).mean(axis=1), (
                file.samplerate
            )
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} cannot be read as sound (WAV, FLAC, OGG, MP3): {error.error_string}") from None


def _read_wave(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Where soundfile is missing: WAV with whole numbers, by Python's own library."""
    import wave

    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{name} cannot be read as sound ({error}). Without the library soundfile, this container reads WAV alone."
        ) from None
    _check_rate(rate, name)
    if width not in (1, 2, 4) or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{name} has {8 * width} bits and {channels} channels, which cannot be read here.")
    kind, middle, scale = {1: ("u1", 128, 128), 2: ("<i2", 0, 2**15), 4: ("<i4", 0, 2**31)}[width]
    usable = len(frames) - len(frames) % (width * channels)
    samples = (np.frombuffer(frames[:usable], kind).astype(np.float32) - middle) / scale
    return samples.reshape(-1, channels).mean(axis=1), rate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The same sound at another rate: interpolated with a sinc under a Hann window of 6 zero crossings, low-passed at
    0.99 of the lower of the two Nyquist frequencies (J. O. Smith, Digital Audio Resampling; torchaudio's default)."""
    if rate == wanted:
        return np.ascontiguousarray(samples, np.float32)
    divisor = math.gcd(rate, wanted)
    old, new = rate // divisor, wanted // divisor
    base = min(old, new) * 0.99
    width = math.ceil(6 * old / base)
    places = torch.arange(-width, width + old, dtype=torch.float64)[None] / old
    times = torch.arange(0, -new, -1, dtype=torch.float64)[:, None] / new + places
    times = (times * base).clamp(-6, 6)
    kernel = torch.sinc(times) * torch.cos(times * math.pi / 12) ** 2 * (base / old)
    padded = torch.nn.functional.pad(torch.from_numpy(np.asarray(samples, np.float32)), (width, width + old))
    resampled = torch.nn.functional.conv1d(padded[None, None], kernel.float()[:, None], stride=old)
    length = math.ceil(new * len(samples) / old)
    return resampled[0].T.reshape(-1)[:length].contiguous().numpy()


def frames(value: Any, name: str, count: int, step: int, max_pixels: int) -> list[np.ndarray]:
    """`count` frames of a video, every `step`-th: of a list of images, or of a file where the library av is there."""
    if isinstance(value, dict) and set(value) == {"frames"} and isinstance(value["frames"], list):
        given = value["frames"]
        needed = (count - 1) * step + 1
        if len(given) < needed:
            raise ValueError(f"{name} has {len(given)} frames; {needed} are needed.")
        return [
            np.asarray(image(given[place], f"{name}.frames[{place}]", max_pixels)) for place in range(0, needed, step)
        ]
    data = decoded(value, name, "a video")
    try:
        import av
    except ImportError:
        raise ValueError(
            f'{name}: a video file needs the library av, which this container lacks. Send {{"frames": [images]}}.'
        ) from None
    # As transformers chooses them: evenly, from the first to one frame short of the window's end.
    wanted = np.linspace(0, count * step - 1, num=count, dtype=np.int64)
    images: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > max_pixels:
                raise ValueError(f"{name} has {stream.width} x {stream.height} pixels; at most {max_pixels} are read.")
            for number, frame in enumerate(container.decode(video=0)):
                if number > wanted[-1]:
                    break
                if number >= wanted[0] and number in wanted:
                    images.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{name} cannot be read as a video: {error}.") from None
    if len(images) < count:
        raise ValueError(f"{name} is too short: {count} frames of it are needed, every {step}.")
    return images


def wave_file(samples: np.ndarray, rate: int) -> bytes:
    """A WAV file of 16 bits a sample, from an array of shape (samples,) or (channels, samples)."""
    import wave

    channels = np.atleast_2d(np.asarray(samples, np.float32))
    frames_out = (channels.T.clip(-1, 1) * 32767).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(frames_out.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(frames_out.tobytes())
    return buffer.getvalue()
