"""Models that see and hear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference
from rows import Row
from small import BYTES, WORDS, byte_tokenizer, maker, saved, seed, word_tokenizer

from mme.packaging import samples

PICTURES = [samples.image(48, 40), samples.image(64, 64)]
TONES = [samples.tone(0.5), samples.tone(0.8)]
SEEN = [*({"inputs": picture} for picture in PICTURES), {"inputs": PICTURES}]
HEARD = [*({"inputs": tone} for tone in TONES), {"inputs": TONES}]
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZE = {"image_size": 32, "patch_size": 8}
LABELS = {"num_labels": 3, "id2label": {0: "a house", 1: "a dog", 2: "rain"}}
CANDIDATES = {"candidate_labels": ["a house", "a dog", "rain"]}
WAV2VEC = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WAV2VEC |= {"conv_dim": [16, 16], "conv_stride": [20, 16], "conv_kernel": [20, 16], "num_conv_pos_embeddings": 16}
WAV2VEC |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "vocab_size": 32}


def pixels(kind: str, **values: Any) -> Callable[[], list[Any]]:
    def made() -> list[Any]:
        import transformers

        return [getattr(transformers, kind)(**{"size": {"height": 32, "width": 32}, **values})]

    return made


def looks(
    architecture: str, task: str, kind: str, values: dict[str, Any], parts: Callable[[], list[Any]], **more: Any
) -> Row:
    model, config = kind.split()
    requests = more.pop("requests", SEEN)
    expected = more.pop("reference", None) or reference.pipeline(task)
    return Row(architecture, task, maker(model, config, parts, **values), requests, expected, **more)


def with_words(parts: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    return lambda: [*parts(), word_tokenizer(pairs=False)]


def letters() -> Any:
    """A tokenizer for speech: a token is a letter, and | is a space."""
    import json
    import tempfile

    from transformers import Wav2Vec2CTCTokenizer

    characters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps({letter: number for number, letter in enumerate(characters)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path))


def hears(**values: Any) -> Callable[[], list[Any]]:
    def made() -> list[Any]:
        from transformers import Wav2Vec2FeatureExtractor

        return [Wav2Vec2FeatureExtractor(**values)]

    return made


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    seed()
    text = {**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 32, "projection_dim": 16, "eos_token_id": 3}
    vision = {**VIT, **SIZE, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    saved(folder, model, processor, word_tokenizer(pairs=False))


def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    seed()
    text = {**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 64, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**VIT, **SIZE}))
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    saved(folder, model, processor, word_tokenizer(pairs=False))


def owlvit(folder: Path) -> None:
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor

    seed()
    text = {**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3}
    config = OwlViTConfig(text_config=text, vision_config={**VIT, **SIZE}, projection_dim=16)
    processor = OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    saved(folder, OwlViTForObjectDetection(config), processor, word_tokenizer(maximum=16, pairs=False))


def captioner(folder: Path) -> None:
    """A ViT that looks and a GPT-2 that writes."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    seed()
    decoder = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=BYTES, n_positions=64, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VIT, **SIZE), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    saved(folder, model, ViTImageProcessor(size={"height": 32, "width": 32}), byte_tokenizer())


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    seed()
    text = {**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 64, "encoder_hidden_size": 16}
    text |= {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config={**VIT, **SIZE}, projection_dim=16)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    saved(folder, BlipForConditionalGeneration(config), processor, word_tokenizer(pairs=False))


def llava(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    seed()
    text = {"model_type": "llama", **VIT, "vocab_size": BYTES + 1, "max_position_embeddings": 256}
    text |= {"num_key_value_heads": 2}
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **VIT, **SIZE, "projection_dim": 16},
        image_token_index=BYTES,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        byte_tokenizer(extra=("<image>",)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    saved(folder, model, processor)


def whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    seed()
    config = WhisperConfig(
        vocab_size=BYTES,
        num_mel_bins=8,
        **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 50},
        **{"max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        **{"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(
        **{"max_length": 16, "suppress_tokens": None, "begin_suppress_tokens": None, "no_timestamps_token_id": None},
    )
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    letters = tokenizer.get_vocab()
    (folder / "vocab.json").write_text(json.dumps(letters), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    special = {"unk_token": "</s>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **special)
    saved(folder, model, WhisperFeatureExtractor(feature_size=8, chunk_length=1, n_fft=400), words)


def clap(folder: Path) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    seed()
    text = {**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 64, "pad_token_id": 0, "projection_dim": 16}
    heard = {"spec_size": 32, "num_mel_bins": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "projection_dim": 16}
    heard |= {"patch_embeds_hidden_size": 8, "hidden_size": 16, "patch_size": 4, "window_size": 4, "num_classes": 4}
    heard |= {"patch_stride": [4, 4], "enable_fusion": False}
    model = ClapModel(ClapConfig(text_config=text, audio_config=heard, projection_dim=16))
    extractor = ClapFeatureExtractor(
        **{"feature_size": 8, "sampling_rate": 16_000, "max_length_s": 1, "hop_length": 512, "fft_window_size": 512},
        **{"truncation": "rand_trunc", "padding": "repeatpad", "frequency_max": 8000},
    )
    saved(folder, model, extractor, word_tokenizer(maximum=32, pairs=False))


def donut(folder: Path) -> None:
    """Donut: a Swin that reads the page and an MBart that writes the answer."""
    from transformers import (
        DonutImageProcessor,
        DonutSwinConfig,
        MBartConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
    )

    seed()
    encoder = DonutSwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    decoder = MBartConfig(
        **{"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
        **{"vocab_size": BYTES, "max_position_embeddings": 128, "add_cross_attention": True, "is_decoder": True},
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.update(
        decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, max_length=90, forced_eos_token_id=None
    )
    saved(
        folder, model, DonutImageProcessor(size={"height": 32, "width": 32}, do_align_long_axis=False), byte_tokenizer()
    )


def speaker(folder: Path) -> None:
    from transformers import VitsConfig, VitsModel

    seed()
    model = VitsModel(
        VitsConfig(
            vocab_size=len(WORDS),
            **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24, "flow_size": 16},
            **{"spectrogram_bins": 9, "duration_predictor_filter_channels": 16, "prior_encoder_num_flows": 2},
            **{"upsample_initial_channel": 16, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]},
            **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]], "wavenet_dilation_rate": 1},
            **{"prior_encoder_num_wavenet_layers": 1, "posterior_encoder_num_wavenet_layers": 1},
            **{"duration_predictor_num_flows": 2, "depth_separable_num_layers": 2, "sampling_rate": 16_000},
        )
    )
    model.eval().save_pretrained(folder)  # with larger weights it would speak for minutes
    word_tokenizer(pairs=False).save_pretrained(folder)


DETR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "num_queries": 4}
DETR |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_labels": 3}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
BEIT = {**VIT, **SIZE, "use_mask_token": False, "layer_scale_init_value": 0.1}
EVERY = {"threshold": 0.0}
DETECTED = [{"inputs": picture, "parameters": {"threshold": 0.01}} for picture in PICTURES]
DOCUMENT = {
    "image": PICTURES[0],
    "question": "where is the house?",
    "word_boxes": [
        [word, [90 * n, 10, 90 * n + 80, 40]] for n, word in enumerate(["the", "house", "stands", "in", "the", "wind"])
    ],
}

ROWS = [
    *(
        looks(
            name, "image-classification", f"{kind}ForImageClassification {config}", {**values, **LABELS}, parts, **more
        )
        for name, kind, config, values, parts, more in (
            ("ViT", "ViT", "ViTConfig", {**VIT, **SIZE}, pixels("ViTImageProcessor"), {"everywhere": True}),
            ("DeiT", "DeiT", "DeiTConfig", {**VIT, **SIZE}, pixels("DeiTImageProcessor", do_center_crop=False), {}),
            ("BEiT", "Beit", "BeitConfig", BEIT, pixels("BeitImageProcessor", do_center_crop=False), {}),
            ("DINOv2", "Dinov2", "Dinov2Config", {**VIT, **SIZE}, pixels("ViTImageProcessor"), {}),
            ("Swin", "Swin", "SwinConfig", SWIN, pixels("ViTImageProcessor"), {}),
            (
                *(
                    "ConvNeXT",
                    "ConvNext",
                    "ConvNextConfig",
                    {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
                ),
                *(pixels("ViTImageProcessor"), {}),
            ),
            (
                *("ResNet", "ResNet", "ResNetConfig"),
                {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
                *(pixels("ViTImageProcessor"), {"adapters": False}),
            ),
            (
                *("EfficientNet", "EfficientNet", "EfficientNetConfig"),
                {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "depth_divisor": 8},
                *(pixels("EfficientNetImageProcessor"), {"adapters": False}),
            ),
        )
    ),
    looks(
        *("ViT", "image-feature-extraction", "ViTModel ViTConfig", {**VIT, **SIZE}, pixels("ViTImageProcessor")),
        everywhere=True,
    ),
    looks(
        *("YOLOS", "object-detection", "YolosForObjectDetection YolosConfig"),
        {**VIT, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 4, "num_labels": 3},
        pixels("YolosImageProcessor", do_pad=False),
        requests=DETECTED,
        everywhere=True,
    ),
    looks(
        *("BEiT", "image-segmentation", "BeitForSemanticSegmentation BeitConfig"),
        {
            **VIT,
            **SIZE,
            "num_hidden_layers": 4,
            "out_indices": [1, 2, 3, 4],
            "num_labels": 3,
            "use_auxiliary_head": False,
        },
        pixels("BeitImageProcessor", do_center_crop=False),
        everywhere=True,
    ),
    looks(
        *("DPT", "depth-estimation", "DPTForDepthEstimation DPTConfig"),
        {**VIT, **SIZE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8]}
        | {"fusion_hidden_size": 8, "is_hybrid": False, "reassemble_factors": [4, 2, 1, 0.5]},
        pixels("DPTImageProcessor"),
        everywhere=True,
    ),
    looks(
        *("Swin2SR", "image-to-image", "Swin2SRForImageSuperResolution Swin2SRConfig"),
        {**SWIN, "patch_size": 1, "num_channels": 3, "upscale": 2, "upsampler": "pixelshuffledirect"},
        pixels("Swin2SRImageProcessor", size=None, size_divisor=8),
        requests=SEEN[:2],
        reference=reference.upscaled,
    ),
    Row(
        *("CLIP", "zero-shot-image-classification", clip),
        [{**request, "parameters": CANDIDATES} for request in SEEN[:2]],
        reference.pipeline("zero-shot-image-classification"),
        everywhere=True,
    ),
    Row(
        *("SigLIP", "zero-shot-image-classification", siglip),
        [{**request, "parameters": CANDIDATES} for request in SEEN[:2]],
        reference.pipeline("zero-shot-image-classification"),
    ),
    Row(
        *("OWL-ViT", "zero-shot-object-detection", owlvit),
        [{"inputs": PICTURES[0], "parameters": {**CANDIDATES, "threshold": 0.01}}],
        reference.pipeline("zero-shot-object-detection"),
    ),
    Row(
        *("ViT and GPT-2", "image-to-text", captioner),
        [{"inputs": picture, "parameters": {"max_new_tokens": 6}} for picture in PICTURES],
        reference.captions(),
        everywhere=True,
    ),
    Row(
        *("BLIP", "image-to-text", blip),
        [{"inputs": picture, "parameters": {"max_new_tokens": 6}} for picture in PICTURES],
        reference.captions(),
    ),
    Row(
        *("LLaVA", "image-text-to-text", llava),
        [
            {"inputs": {"image": picture, "text": "<image>What is this?"}, "parameters": {"max_new_tokens": 6}}
            for picture in PICTURES
        ],
        reference.pipeline("image-text-to-text"),
    ),
    looks(
        *("ViLT", "visual-question-answering", "ViltForQuestionAnswering ViltConfig"),
        {**VIT, **SIZE, "vocab_size": len(WORDS), "max_position_embeddings": 40, "num_labels": 3},
        with_words(pixels("ViltImageProcessor", size={"shortest_edge": 32}, size_divisor=8)),
        requests=[{"inputs": {"image": picture, "question": "what is this?"}} for picture in PICTURES],
        reference=reference.labels_of_questions,
        everywhere=True,
    ),
    Row(
        *("LayoutLM", "document-question-answering"),
        maker(
            *("LayoutLMForQuestionAnswering", "LayoutLMConfig", lambda: [word_tokenizer()]),
            **{**VIT, "vocab_size": len(WORDS), "max_position_embeddings": 64, "max_2d_position_embeddings": 1024},
        ),
        [{"inputs": DOCUMENT}, {"inputs": DOCUMENT, "parameters": {"top_k": 3}}],
        reference.pipeline("document-question-answering"),
        everywhere=True,
    ),
    Row(
        *("Donut", "document-question-answering", donut),
        [{"inputs": {"image": picture, "question": "where?"}} for picture in PICTURES],
        reference.pipeline("document-question-answering"),
    ),
    looks(
        *("VideoMAE", "video-classification", "VideoMAEForVideoClassification VideoMAEConfig"),
        {**VIT, **SIZE, "num_frames": 4, "tubelet_size": 2, **LABELS},
        pixels("VideoMAEImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        requests=[{"inputs": {"frames": [PICTURES[0], PICTURES[1]] * 2}}],
        reference=reference.videos,
    ),
    looks(
        *(
            "Wav2Vec2",
            "audio-classification",
            "Wav2Vec2ForSequenceClassification Wav2Vec2Config",
            {**WAV2VEC, **LABELS},
        ),
        hears(),
        requests=HEARD,
        everywhere=True,
    ),
    looks(
        *("HuBERT", "audio-classification", "HubertForSequenceClassification HubertConfig", {**WAV2VEC, **LABELS}),
        hears(),
        requests=HEARD,
    ),
    looks(
        *("Wav2Vec2", "automatic-speech-recognition", "Wav2Vec2ForCTC Wav2Vec2Config", WAV2VEC),
        lambda: [*hears()(), letters()],
        requests=HEARD,
        everywhere=True,
    ),
    Row(
        *("Whisper", "automatic-speech-recognition", whisper),
        [{**request, "parameters": {"generate_kwargs": {"min_new_tokens": 5}}} for request in HEARD],
        reference.pipeline("automatic-speech-recognition"),
    ),
    Row(
        *("CLAP", "zero-shot-audio-classification", clap),
        [{"inputs": tone, "parameters": CANDIDATES} for tone in TONES],
        reference.pipeline("zero-shot-audio-classification"),
    ),
    Row(
        *("VITS", "text-to-audio", speaker),
        [{"inputs": "the house is quiet", "parameters": {"seed": 3}}],
        reference.pipeline("text-to-audio"),
    ),
]
