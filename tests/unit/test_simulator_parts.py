"""The parts of the simulator that need no server: endpoints, outputs, forms, moderation, and the books."""

from __future__ import annotations

import io
import json
import struct
import wave
from collections import Counter

import pytest

from airflow_stability.simulator.books import Jobs
from airflow_stability.simulator.endpoints import ENDPOINTS
from airflow_stability.simulator.forms import Form, digest_of, problems_of
from airflow_stability.simulator.moderation import Moderation
from airflow_stability.simulator.outputs import MEDIA_TYPES, make_output

CORE, SD3 = ENDPOINTS[:2]
HOURS = 3600.0
SEEN, OTHER = bytes(range(32)), bytes(range(1, 33))


# The table of endpoints


def test_no_endpoint_is_there_twice():
    assert Counter(endpoint.path for endpoint in ENDPOINTS).most_common(1)[0][1] == 1


def test_the_price_is_that_of_the_model_and_without_a_model_that_of_the_default():
    assert (CORE.price(), CORE.price("sd3.5-flash")) == (3.0, 3.0)
    assert (SD3.price(), SD3.price("sd3.5-flash")) == (6.5, 2.5)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_every_format_of_an_endpoint_can_be_made_and_is_of_its_kind(endpoint):
    for file_format in endpoint.formats:
        assert make_output(file_format, SEEN).media_type.startswith(f"{endpoint.kind}/")


# Outputs


@pytest.mark.parametrize("file_format", MEDIA_TYPES)
def test_an_output_follows_from_its_digest(file_format):
    first, again, other = (make_output(file_format, digest) for digest in (SEEN, SEEN, OTHER))
    assert first == again
    assert first.content != other.content
    assert first.seed != other.seed


@pytest.mark.parametrize("digest", [bytes(32), b"\xff" * 32])
def test_a_seed_is_the_one_asked_for_or_a_valid_one(digest):
    assert make_output("png", digest, seed=7).seed == 7
    assert 1 <= make_output("png", digest).seed <= 4_294_967_294


def test_a_blurred_output_says_so_and_looks_otherwise():
    sharp, blurred = make_output("png", SEEN), make_output("png", SEEN, blurred=True)
    assert (sharp.finish_reason, blurred.finish_reason) == ("SUCCESS", "CONTENT_FILTERED")
    assert sharp.content != blurred.content
    assert sharp.seed == blurred.seed


def test_a_jpeg_begins_and_ends_as_one():
    content = make_output("jpeg", SEEN).content
    assert content.startswith(b"\xff\xd8\xff")
    assert content.endswith(b"\xff\xd9")


@pytest.mark.parametrize(("file_format", "form"), [("webp", b"WEBP"), ("wav", b"WAVE")])
def test_a_riff_file_is_as_long_as_it_says(file_format, form):
    content = make_output(file_format, SEEN).content
    assert (content[:4], content[8:12]) == (b"RIFF", form)
    assert struct.unpack_from("<I", content, 4)[0] == len(content) - 8


def test_a_wav_can_be_played():
    with wave.open(io.BytesIO(make_output("wav", SEEN).content)) as sound:
        assert sound.readframes(sound.getnframes()) == SEEN


def test_an_mp3_is_one_whole_frame():
    content = make_output("mp3", SEEN).content
    assert content.startswith(b"\xff\xfb")
    assert len(content) == 417


def test_a_3d_model_is_gltf():
    content = make_output("glb", SEEN).content
    magic, version, length, chunk, kind = struct.unpack_from("<4sIIII", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), 0x4E4F534A)
    assert json.loads(content[20 : 20 + chunk])["asset"] == {"version": "2.0"}
    assert length % 4 == 0


# Forms


def test_a_digest_is_of_path_names_and_contents_in_any_order():
    parts = [("prompt", b"sea"), ("seed", b"1")]
    digest = digest_of("/a", parts)
    assert digest == digest_of("/a", reversed(parts))
    others = [
        digest_of("/b", parts),
        digest_of("/a", parts[:1]),
        digest_of("/a", [*parts, ("image", b"png")]),
        digest_of("/a", [("prompt", b"1"), ("seed", b"sea")]),
        digest_of("/a", [("prompt", b"seas"), ("eed", b"1")]),
    ]
    assert len({digest, *others}) == 6


def test_every_field_that_is_wrong_is_named():
    texts = {
        "prompt": " ",
        "negative_prompt": "x" * 10_001,
        "seed": "1.5",
        "model": "sd9",
        "aspect_ratio": "7:3",
    }
    problems = problems_of(Form(texts | {"output_format": "gif"}, {}, b""), SD3)
    assert [problem.partition(":")[0] for problem in problems] == [
        "prompt",
        "negative_prompt",
        "output_format",
        "aspect_ratio",
        "model",
        "seed",
    ]


@pytest.mark.parametrize("seed", ["-1", "4294967295", "", "1e3", "²", "9" * 5000])
def test_what_is_no_seed_is_named(seed):
    assert problems_of(Form({"prompt": "sea", "seed": seed}, {}, b""), CORE) == [
        "seed: must be a whole number from 0 to 4294967294"
    ]


@pytest.mark.parametrize("texts", [{"prompt": "x" * 10_000}, {"prompt": "sea", "seed": "4294967294"}])
def test_the_limits_themselves_are_valid(texts):
    assert problems_of(Form(texts, {}, b""), CORE) == []


# Moderation


@pytest.mark.parametrize("prompt", ["a Storm at sea", "storm", "sun,storm,rain", "after the\nSTORM"])
def test_a_word_is_found_in_upper_and_lower_case(prompt):
    moderation = Moderation()
    moderation.add("storm", "blur")
    assert moderation.objection(["sun", prompt]) == "blur"


@pytest.mark.parametrize("prompt", ["storms", "brainstorm", "", "st.orm"])
def test_a_part_of_a_word_is_not_the_word(prompt):
    moderation = Moderation()
    moderation.add("storm", "blur")
    assert moderation.objection([prompt]) is None


def test_a_refusal_comes_before_blurring_and_cleared_words_are_free():
    moderation = Moderation()
    moderation.add("storm", "blur")
    moderation.add("famous person", "public_figure")
    assert moderation.objection(["a famous person in a storm"]) == "public_figure"
    moderation.clear()
    assert moderation.objection(["a famous person in a storm"]) is None


@pytest.mark.parametrize("arguments", [("", "blur"), (" !", "blur"), (None, "blur"), ("storm", "dislike")])
def test_what_is_no_objection_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"\.$"):
        Moderation().add(*arguments)


# Jobs


def started(jobs, now=0.0):
    return jobs.start("key-1", CORE, make_output("png", SEEN), now)


def test_a_job_is_found_by_the_key_that_started_it_alone():
    jobs = Jobs()
    job = started(jobs)
    assert len(job.id) == 64
    assert jobs.find(job.id, "key-1", 1.0) == job
    assert jobs.find(job.id, "key-2", 1.0) is None
    assert jobs.find("0" * 64, "key-1", 1.0) is None


def test_a_job_is_gone_after_24_hours():
    jobs = Jobs()
    job = started(jobs)
    assert jobs.find(job.id, "key-1", 24 * HOURS - 1) == job
    assert jobs.find(job.id, "key-1", 24 * HOURS) is None


def test_a_new_job_makes_the_old_ones_be_forgotten():
    jobs = Jobs()
    old, young = started(jobs), started(jobs, 2 * HOURS)
    started(jobs, 25 * HOURS)
    # Asked for at an earlier time, since at the time itself it would be too old to be found.
    assert jobs.find(old.id, "key-1", 1.0) is None
    assert jobs.find(young.id, "key-1", 25 * HOURS) == young
