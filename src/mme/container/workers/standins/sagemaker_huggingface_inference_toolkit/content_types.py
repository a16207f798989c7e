"""MIME types by the toolkit's names."""

JSON = "application/json"
CSV = "text/csv"
OCTET_STREAM = "application/octet-stream"
ANY = "*/*"
NPY = "application/x-npy"
JPEG = "image/jpeg"
PNG = "image/png"
TIFF = "image/tiff"
BMP = "image/bmp"
GIF = "image/gif"
WEBP = "image/webp"
X_IMAGE = "image/x-image"
FLAC = "audio/x-flac"
MP3 = "audio/mpeg"
WAV = "audio/wave"
OGG = "audio/ogg"
X_AUDIO = "audio/x-audio"

UTF8_TYPES = [JSON, CSV]
IMAGE_TYPES = [JPEG, PNG, TIFF, BMP, GIF, WEBP, X_IMAGE]
AUDIO_TYPES = [FLAC, MP3, WAV, OGG, X_AUDIO]
