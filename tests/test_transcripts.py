"""Subtitle files and words per window, on text written here."""

import json
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from test_video_clips import DATA, prepare, write_video

from dataset_scripts.audio_reader import AudioReader
from dataset_scripts.media import in_language, sound_seconds
from dataset_scripts.transcripts import (
    Cue,
    Transcript,
    clean_subtitle,
    decode_text,
    from_metadata,
    parse_subtitles,
    read_transcript,
    recognise_speech,
)

SUBRIP = "1\n00:00:00,900 --> 00:00:01,600\nlay white\n\n2\n00:00:01,600 --> 01:00:02,600\nby <i>S</i>\nzero again\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_subrip_in_any_encoding(tmp_path, encoding, line_end):
    path = tmp_path / "clip.SRT"
    path.write_bytes(SUBRIP.replace("again", "été").replace("\n", line_end).encode(encoding))
    transcript = read_transcript(path)
    assert transcript.text == "lay white by S zero été"
    assert transcript.cues == (Cue(0.9, 1.6, "lay white"), Cue(1.6, 3602.6, "by S zero été"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".vtt", ".txt"])
def test_webvtt_and_plain_text_in_any_encoding(tmp_path, encoding, line_end, suffix):
    text = "WEBVTT\n\n00:00.900 --> 00:02.600\nd\u00e9j\u00e0 vu\n" if suffix == ".vtt" else "d\u00e9j\u00e0 vu\n"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / f"clip{suffix}").write_bytes((mark + text).replace("\n", line_end).encode(encoding))
    cues = (Cue(0.9, 2.6, "d\u00e9j\u00e0 vu"),) if suffix == ".vtt" else None
    assert read_transcript(tmp_path / f"clip{suffix}") == Transcript("d\u00e9j\u00e0 vu", cues)


@pytest.mark.parametrize(
    ("languages", "wanted", "found"),
    [
        (["eng", "spa"], "es", "spa"),
        (["fre", "ger"], "de", "ger"),
        (["fra", "deu"], "de", "deu"),
        (["en", "pt"], "pt-BR", "pt"),
        (["slo", "slv"], "sl", "slv"),
        (["eng", "fra"], "fra", "fra"),
        ([None, "eng"], None, None),
        (["eng", "fra"], "ja", "eng"),
    ],
)
def test_language_of_a_stream(languages, wanted, found):
    streams = [SimpleNamespace(language=language) for language in languages]
    assert in_language(streams, wanted).language == found and in_language([], wanted) is None


@pytest.fixture
def two_tracks(tmp_path):
    """A quiet English track and a loud, longer Spanish one, each with its subtitles if there are real ones to take
    after."""
    path = tmp_path / "in" / "two.mkv"
    path.parent.mkdir()
    template = DATA / "odd" / "gen_subs.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=20)
        video.width, video.height, video.pix_fmt = 16, 16, "yuvj420p"
        tracks, subtitles = [container.add_stream("pcm_s16le", rate=8_000) for _ in range(2)], []
        if template.is_file():
            with av.open(str(template)) as real:
                subtitles = [container.add_stream_from_template(real.streams.subtitles[0]) for _ in range(2)]
        for track, language in zip((*tracks, *subtitles), ("eng", "spa") * 2, strict=False):
            track.metadata["language"] = language
        for track in tracks:
            track.codec_context.layout = "mono"
        for track, level, num_samples in zip(tracks, (0.1, 0.5), (8_000, 12_000), strict=True):
            sound = np.full((1, num_samples), level * 32767, np.int16)
            for begin in range(0, num_samples, 400):
                frame = av.AudioFrame.from_ndarray(sound[:, begin : begin + 400], "s16", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 8_000, begin, Fraction(1, 8_000)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        for index in range(20):
            frame = av.VideoFrame(16, 16, "yuvj420p")
            frame.pts, frame.time_base = index, Fraction(1, 20)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for stream, words in zip(subtitles, (b"hello", b"hola"), strict=False):
            packet = av.Packet(words)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = 200
            packet.duration = 500
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("language", "level", "text"),
    [(None, 0.1, "hello"), ("en", 0.1, "hello"), ("es", 0.5, "hola"), ("de", 0.1, "hello")],
)
def test_the_tracks_of_a_language(two_tracks, tmp_path, language, level, text):
    with AudioReader(two_tracks, 8_000, language) as reader:
        samples, valid = reader.read(0.0, 1.0, 8_000)
    assert valid == 8_000 and np.allclose(samples, level, atol=0.01)
    assert sound_seconds(two_tracks, language) == pytest.approx(1.5 if language == "es" else 1.0)
    clips, _ = prepare(two_tracks.parent, tmp_path / "out", language=language)
    assert np.allclose(clips["train"][0]["audio"], level, atol=0.01)
    if DATA.is_dir():
        assert clips["train"][0]["text"] == text


def test_webvtt_notes_settings_and_tags():
    text = (
        "WEBVTT - title\n\nNOTE\nnot spoken\n\nSTYLE\n::cue {}\n\nintro\n00:00.900 --> 00:02.600 align:start\n"
        "<v Bob><b>lay</b> white</v> <00:01.500><c.red>now</c> &amp; then\n"
    )
    assert parse_subtitles(text) == [Cue(0.9, 1.5, "lay white"), Cue(1.5, 2.6, "now & then")]


def test_webvtt_times_of_words_but_not_of_syllables():
    text = (
        "00:01.000 --> 00:03.000\nka<00:01.200>ra<00:01.400>oke<00:02.000><c> night</c> <00:09.000>out <00:02.500>\n"
    )
    assert parse_subtitles(text) == [Cue(1.0, 2.0, "karaoke"), Cue(2.0, 3.0, "night out")]


def test_subrip_without_empty_lines_between_cues():
    text = "1\n00:00:00,000 --> 00:00:01,000\none\n2\n00:00:01,000 --> 00:00:02,000\ntwo\n"
    assert [cue.text for cue in parse_subtitles(text)] == ["one", "two"]


def test_utf_16_without_a_mark(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decode_text("1\n00:00:01,000 --> 00:00:02,000\nÄ word".encode(encoding)).endswith("\nÄ word")
    assert decode_text(b"a\0b") == "ab" and decode_text("äöü".encode("cp1252")) == "äöü"


def test_a_subtitle_file_without_subtitles_is_no_transcript(tmp_path):
    for suffix, text in ((".srt", ""), (".srt", "garbage"), (".vtt", "WEBVTT\n")):
        (tmp_path / f"clip{suffix}").write_text(text)
        assert read_transcript(tmp_path / f"clip{suffix}") is None
    (tmp_path / "clip.txt").touch()
    assert read_transcript(tmp_path / "clip.txt") == Transcript("")


def test_tags_are_told_from_text():
    assert clean_subtitle("{\\an8}I <3 you, a < b and b > a") == "I <3 you, a < b and b > a"


def test_plain_text_keeps_its_lines(tmp_path):
    path = tmp_path / "clip.txt"
    path.write_bytes("\ufeff two\r\nlines \r\n".encode())
    assert read_transcript(path) == Transcript("two\nlines", None)
    assert decode_text(b"") == ""


def test_words_go_where_their_midpoint_is():
    transcript = Transcript("a b  c d!", (Cue(0.0, 4.0, "a b  c d"),))
    assert transcript.cut(0, 4).text == "a b  c d!"  # all of it: as written
    assert transcript.cut(0, 2).text == "a b"
    assert transcript.cut(1.5, 2.5).text == "b"  # midpoints 0.5, 1.5, 2.5, 3.5: start included, end not
    assert transcript.cut(4, 8).text == ""
    two = Transcript("one  two three", (Cue(0, 2, "one  two"), Cue(2, 4, "three")))
    assert two.cut(0, 2).text == "one  two"  # a whole cue: as written
    assert two.cut(1, 4) == Transcript("two three", (Cue(0, 1, "two"), Cue(1, 3, "three")))  # times from the cut on
    assert two.cut(1, 4) == Transcript.from_columns(**two.cut(1, 4).columns())
    assert Transcript("anything").cut(3, 6).text == "anything"
    assert Transcript.from_columns(**Transcript("anything").columns()) == Transcript("anything")


def test_metadata():
    words = [{"start": 1, "end": 2, "word": "two"}, {"start": 0, "end": 1.0, "word": "One"}]
    transcript = from_metadata({"text": "One, two.", "words": words})
    assert (transcript.cut(0, 2).text, transcript.cut(0, 1).text, transcript.cut(1, 2).text) == (
        "One, two.",
        "One",
        "two",
    )
    assert from_metadata({"words": words}).text == "One two"
    assert from_metadata({"text": "", "words": None}) == Transcript("")
    assert from_metadata({"file_name": "a.mp4"}) is None and from_metadata({"text": []}) is None
    assert from_metadata({"text": ["one caption", "another"]}) == Transcript("one caption")


@pytest.mark.parametrize(
    "entry",
    [
        {"text": 3},
        {"text": [3]},
        {"words": "one"},
        {"words": [{"start": 2, "end": 1, "word": "a"}]},
        {"words": ["one"]},
    ],
)
def test_metadata_of_another_form(entry):
    with pytest.raises(ValueError, match="text|words"):
        from_metadata(entry)


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("whisper")
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>"]
    specials += ["<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(1501)])
    ids = {token: tokenizer.token_to_id(token) for token in specials}
    WhisperTokenizerFast(tokenizer_object=tokenizer, pad_token=specials[0]).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        is_multilingual=True,
        alignment_heads=[[0, 0]],
        lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        max_length=16,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("language", [None, "en"])
def test_speech_recognition(tiny_whisper, language):
    draw = np.random.default_rng(0)
    # One longer than what the model hears at once, and silence, in which there is nothing to hear.
    sounds = [draw.normal(0, 0.1, seconds * 8_000).astype(np.float32) for seconds in (3, 0, 41, 1)]
    sounds.append(np.zeros(8_000, np.float32))
    transcripts = recognise_speech(sounds, 8_000, tiny_whisper, language)
    assert transcripts[1] == transcripts[4] == Transcript() and len(transcripts) == 5
    assert all(transcripts[index].text for index in (0, 2, 3))
    alone = [recognise_speech([sound], 8_000, tiny_whisper, language, batch_size=1)[0] for sound in sounds]
    assert [transcript.text for transcript in transcripts] == [transcript.text for transcript in alone]


def test_clips_without_text_are_heard(tiny_whisper, tmp_path):
    draw = np.random.default_rng(0)
    for name in "abc":
        write_video(tmp_path / "in" / f"{name}.mkv", sound=draw.normal(0, 0.1, 8_000).clip(-1, 1))
    write_video(tmp_path / "in" / "mute.mkv")
    (tmp_path / "in" / "broken.mkv").touch()
    (tmp_path / "in" / "b.txt").write_text("as written")
    clips, skipped = prepare(tmp_path / "in", tmp_path / "out", asr_model=tiny_whisper)
    texts = dict(zip(clips["train"]["video"], clips["train"]["text"], strict=True))
    assert texts["b.mkv"] == "as written" and texts["mute.mkv"] == "" and set(skipped) == {"broken.mkv"}
    assert texts["a.mkv"] or texts["c.mkv"]
    preparation = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert preparation["config"]["asr_model"] == tiny_whisper
