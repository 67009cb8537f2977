"""The three styles of records: what becomes of roles, parts, tags and images, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_sets.plain import plain

from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.records.parts import open_pools
from torchtune_qwenvl.data.records.styles.tags import split_tags
from torchtune_qwenvl.transforms.errors import BadSample


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


ANSWER = {"role": "assistant", "content": "A cat."}
GPT = {"from": "gpt", "value": "A cat."}


def human(value: Any) -> dict[str, Any]:
    return {"from": "human", "value": value}


def test_messages_with_text_and_every_kind_of_image_part() -> None:
    content = [
        {"type": "image", "image": "a.jpg", "max_pixels": 50176},
        {"type": "text", "text": " <image> is text here "},
        {"type": "image", "path": "b.jpg", "url": None, "resized_height": 56, "resized_width": 84},
        {"type": "image", "url": "https://x/c.jpg"},
        {"type": "image_url", "image_url": {"url": "https://x/d.jpg", "detail": "low"}, "min_pixels": 784},
        {"type": "image_url", "image_url": "e.jpg"},
        {"image": {"bytes": b"f", "path": None}},
        {"text": "and?"},
    ]
    parsed = MessageParser()({"messages": [{"role": "system", "content": "S"}, user(content), ANSWER]})
    assert plain(parsed) == [
        ("system", ["S"]),
        (
            "user",
            [
                ("image", "a.jpg", {"max_pixels": 50176}),
                " <image> is text here ",
                ("image", "b.jpg", {"resized_height": 56, "resized_width": 84}),
                ("image", "https://x/c.jpg"),
                ("image", "https://x/d.jpg", {"min_pixels": 784}),
                ("image", "e.jpg"),
                ("image", {"bytes": b"f", "path": None}),
                "and?",
            ],
        ),
        ("assistant", ["A cat."]),
    ]
    assert [message.masked for message in parsed] == [True, True, False]


def test_image_parts_without_source_take_the_images_column() -> None:
    record = {
        "images": ["a.jpg", "b.jpg"],
        "messages": [user([{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]), ANSWER],
    }
    assert plain(MessageParser()(record))[0] == ("user", [("image", "a.jpg"), "and", ("image", "b.jpg")])


def test_tool_answers_and_weight_zero_are_masked() -> None:
    turns = [user("q"), {**ANSWER, "weight": 0}, {"role": "tool", "content": "42"}, {**ANSWER, "weight": 1}]
    parsed = MessageParser()({"messages": turns})
    assert [message.role for message in parsed] == ["user", "assistant", "ipython", "assistant"]
    assert [message.masked for message in parsed] == [True, True, True, False]
    assert [message.eot for message in parsed] == [True, True, False, True]


def test_conversations_as_the_qwen_team_writes_them() -> None:
    """Text of user turns is stripped around tags and at its ends; the assistant's stays as it is."""
    record = {
        "image": ["a.jpg", "b.jpg"],
        "conversations": [
            {"from": "system", "value": "S"},
            human("<image>\nWhat is it? "),
            {"from": "gpt", "value": " A <image> of a cat.\n"},
            human("And <image>\n here?"),
            GPT,
        ],
    }
    assert plain(MessageParser()(record)) == [
        ("system", ["S"]),
        ("user", [("image", "a.jpg"), "What is it?"]),
        ("assistant", [" A <image> of a cat.\n"]),
        ("user", ["And", ("image", "b.jpg"), "here?"]),
        ("assistant", ["A cat."]),
    ]


@pytest.mark.parametrize("column", ["image", "images"])
def test_one_image_may_stand_without_a_list(column: str) -> None:
    record = {column: "a.jpg", "conversations": [human("<image>"), GPT]}
    assert plain(MessageParser()(record))[0] == ("user", [("image", "a.jpg")])


def test_role_and_content_with_tags() -> None:
    record = {"messages": [user("<image>Who?"), ANSWER], "images": ["a.jpg"]}
    parse = MessageParser("conversations", column_map={"conversations": "messages"})
    assert plain(parse(record))[0] == ("user", [("image", "a.jpg"), "Who?"])


@pytest.mark.parametrize("images", [None, "a.jpg", ["a.jpg", "b.jpg"]])
def test_question_and_answer_columns(images: Any) -> None:
    record = {"query": " what? ", "label": "cat", "image": images}
    parsed = MessageParser(column_map={"question": "query", "answer": "label"})(record)
    before = [("image", name) for name in ([images] if isinstance(images, str) else images or [])]
    assert plain(parsed) == [("user", [*before, " what? "]), ("assistant", ["cat"])]


def test_new_system_prompt_replaces_the_old_one() -> None:
    record = {"messages": [{"role": "system", "content": "old"}, user("q"), ANSWER]}
    parsed = MessageParser(new_system_prompt="new")(record)
    assert plain(parsed) == [("system", ["new"]), ("user", ["q"]), ("assistant", ["A cat."])]
    assert parsed[0].masked


WORDS = st.text(alphabet=st.characters(exclude_characters="<>"), max_size=12)


KINDS = st.sampled_from(["image", "video"])


@given(pieces=st.lists(st.tuples(KINDS, WORDS), max_size=6), first=WORDS)
def test_tags_split_text_and_lose_nothing(pieces: list[tuple[str, str]], first: str) -> None:
    """Property: images and videos in order, text pieces stripped in order, and nothing else."""
    named = {kind: [f"{i}" for i, (k, _) in enumerate(pieces) if k == kind] for kind in ("image", "video")}
    pools = open_pools({"images": named["image"], "videos": named["video"]})
    parts = split_tags(first + "".join(f"<{kind}>{text}" for kind, text in pieces), pools, "turn")
    expected: list[dict[str, Any]] = [{"type": "text", "content": first.strip()}]
    for i, (kind, text) in enumerate(pieces):
        expected += [{"type": kind, "content": f"{i}"}, {"type": "text", "content": text.strip()}]
    expected = [part for part in expected if part["content"]]
    assert parts == (expected or [{"type": "text", "content": ""}])
    for pool in pools.values():
        pool.check_empty("tags", "")


@pytest.mark.parametrize("kind", ["image", "video"])
@given(tags=st.lists(st.integers(0, 3), min_size=1, max_size=4), media=st.integers(0, 8))
def test_tags_and_media_are_counted_over_the_whole_conversation(
    kind: str, tags: list[int], media: int
) -> None:
    turns = [turn for n in tags for turn in (human(f"<{kind}>" * n + "q"), GPT)]
    record = {"conversations": turns, f"{kind}s": [f"{i}" for i in range(media)]}
    if sum(tags) == media:
        parts = [part for message in MessageParser()(record) for part in message.content]
        assert [part["content"] for part in parts if part["type"] == kind] == record[f"{kind}s"]
    else:
        problem = f"more <{kind}> tags than" if sum(tags) > media else f"{media} {kind}.*only {sum(tags)} <"
        with pytest.raises(BadSample, match=problem):
            MessageParser()(record)


PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=20)),
    st.builds(
        lambda key, name: {"type": "image", key: name}, st.sampled_from(["image", "path", "url"]), WORDS
    ),
)


@given(turns=st.lists(st.one_of(st.text(max_size=20), st.lists(PARTS, max_size=4)), min_size=1, max_size=4))
def test_text_of_messages_is_never_changed(turns: list[Any]) -> None:
    """Property: every text and source comes out as it went in, in order, strings and lists mixed."""
    record = {"messages": [message for turn in turns for message in (user(turn), ANSWER)]}
    parsed = MessageParser()(record)
    for content, message in zip(turns, parsed[::2], strict=True):
        given_parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        came = [entry["content"] for entry in message.content]
        assert came == [next(v for k, v in part.items() if k != "type") for part in given_parts]


BAD = [
    ({"messages": []}, "messages: an empty conversation.*add turns or remove"),
    ({"conversations": []}, "conversations: an empty conversation"),
    ({"messages": [user("q")]}, "expected an assistant turn, got user.*add the answer"),
    ({"messages": [{"role": "robot", "content": "q"}]}, r"messages\[0\]: unknown role 'robot'.*system, user"),
    ({"conversations": [{"from": "bot", "value": "q"}]}, r"conversations\[0\]: unknown role 'bot'.*human"),
    ({"messages": ["q"]}, r"messages\[0\]: expected an object, got str"),
    ({"messages": "q"}, "messages: expected a list of turns, got str"),
    ({"messages": [user(None), ANSWER]}, r"messages\[0\].content: expected text, got null"),
    ({"messages": [user(["q"]), ANSWER]}, r"content\[0\]: expected a typed part \(an object\), got str"),
    (
        {"messages": [user([{"type": "sound"}]), ANSWER]},
        r"messages\[0\].content\[0\]: unknown part type 'sound'.*expected text, video, .*image",
    ),
    (
        {"messages": [user([{"type": "text"}]), ANSWER]},
        'text part expects "text" with a string, got NoneType',
    ),
    ({"messages": [user([{"type": "image"}]), ANSWER]}, "more image parts without a source than the 0 image"),
    (
        {"messages": [user([{"type": "image", "url": "a", "path": "b"}]), ANSWER]},
        "two sources, path and url.*keep one",
    ),
    (
        {"messages": [user("q"), ANSWER], "images": ["a"]},
        r"1 image\(s\), but only 0 image parts or <image> tags.*add a part of type image",
    ),
    (
        {"messages": [user([{"type": "image", "path": "a", "max_pixels": 1.5}]), ANSWER]},
        "max_pixels expects a positive whole number of pixels, got 1.5",
    ),
    (
        {"messages": [user([{"type": "image", "path": "a", "resized_width": 28}]), ANSWER]},
        "expected resized_height and resized_width together",
    ),
    (
        {"messages": [user([{"type": "image", "path": "a", "min_pixels": 9, "max_pixels": 8}]), ANSWER]},
        "min_pixels 9 is above max_pixels 8",
    ),
    (
        {"messages": [user("q"), {**ANSWER, "reasoning_content": "Hm."}]},
        r"messages\[1\]: reasoning_content.*as <think>…</think>",
    ),
    ({"conversations": [human("q"), GPT], "audios": ["a.wav"]}, "audios: sound, .*remove the column"),
    (
        {"messages": [user("<video>q"), ANSWER], "videos": ["a.mp4", "b.mp4"]},
        r"2 video\(s\), but only 1 video parts or <video> tags.*add a part of type video",
    ),
    ({"conversations": [human("q"), GPT], "system": 3}, "system: expected text, got int"),
    (
        {"messages": [{"role": "system", "content": "s"}, user("q"), ANSWER], "system": "t"},
        "both a system turn and a system column.*keep one",
    ),
    ({"conversations": [human("<image><image>q"), GPT], "image": "a"}, "more <image> tags than the 1 image"),
    ({"conversations": [human("q"), GPT], "image": "a"}, r"1 image\(s\), but only 0 <image> tags.*remove"),
    (
        {"conversations": [human("<video><video>q"), GPT], "video": "a.mp4"},
        r"conversations\[0\]: more <video> tags than the 1 video\(s\).*add the missing videos",
    ),
    ({"conversations": [human("q"), GPT], "video": "a.mp4"}, r"1 video\(s\), but only 0 <video> tags"),
    ({"question": "q", "answer": "a", "video": "a", "videos": ["b"]}, "both columns, video and videos"),
    (
        {"messages": [user([{"type": "video", "video": "a", "path": "b"}]), ANSWER]},
        "one video with two sources, video and path",
    ),
    (
        {"messages": [user([{"type": "video", "video": "a", "nframes": 4}]), ANSWER]},
        "an option nframes of a video .call it num_frames",
    ),
    (
        {"question": "q", "answer": "a", "videos": [{"video": ["0.jpg"], "sample_fps": 2}]},
        "an option sample_fps of a video .call it source_fps",
    ),
    ({"conversations": [human(3), GPT]}, r"conversations\[0\].value: expected text, got int"),
    ({"question": "q", "answer": 3}, "answer: expected text, got int.*make it a string"),
    ({"question": "q", "answer": "a", "image": "a", "images": ["b"]}, "both columns, image and images"),
    ({"text": "q"}, "expected the columns messages, or conversations.*got text.*column_map"),
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("q"), ANSWER]},
        {"conversations": [human("q"), GPT]},
        {"question": "q", "answer": "a"},
    ],
    ids=lambda record: next(iter(record)),
)
def test_a_system_column_is_the_system_message(record: dict[str, Any]) -> None:
    def texts(parser: MessageParser, system: Any) -> list[tuple[str, str]]:
        return [(m.role, m.text_content) for m in parser({**record, "system": system})]

    alone = texts(MessageParser(), None)
    assert [role for role, _ in alone] == ["user", "assistant"]
    assert texts(MessageParser(), "") == alone
    assert texts(MessageParser(), "Be brief.") == [("system", "Be brief."), *alone]
    assert texts(MessageParser(new_system_prompt="Be kind."), "x") == [("system", "Be kind."), *alone]
    mapped = MessageParser(column_map={"system": "instruction"})({**record, "instruction": "Be brief."})
    assert mapped[0].role == "system" and mapped[0].text_content == "Be brief."


def test_tags_in_messages_may_still_be_named_as_conversations() -> None:
    parser = MessageParser("conversations", {"conversations": "messages"})
    messages = parser({"messages": [user("<video>q"), ANSWER], "videos": ["a.mp4"]})
    assert [part["content"] for part in messages[0].content] == ["a.mp4", "q"]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_records(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        MessageParser()(record)


def test_bad_column_map_and_style() -> None:
    with pytest.raises(ValueError, match=r"style: expected auto, messages, conversations, qa, .*got 'vqa'"):
        MessageParser("vqa")
    with pytest.raises(ValueError, match=r"column_map: expected keys among messages.*got inputs"):
        MessageParser(column_map={"inputs": "q"})
    with pytest.raises(BadSample, match=r"column_map expects query, the record has question.*correct"):
        MessageParser(column_map={"question": "query"})({"question": "q"})
