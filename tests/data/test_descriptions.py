"""Records of descriptions: boxes, refinement in turn with who did it, and the examples made of a record."""

import pytest

from jaxft.data import Description, ObjectNote, Revision, box_text, refine, to_box, to_examples

CAT = ObjectNote("cat", "a grey cat", (300, 10, 999, 500))
MAT = ObjectNote("mat", "", (300, 5, 600, 999))


@pytest.mark.parametrize(("corners", "want"), [
    ((0.0, 0.0, 1.0, 1.0), (0, 0, 999, 999)), ((0.5, 0.001, 0.5, 0.9999), (500, 1, 500, 999))])
def test_boxes_are_in_thousandths_with_y_first(corners, want):
  assert to_box(corners) == want
  assert box_text(want) == " ".join(map(str, want))


@pytest.mark.parametrize("corners", [
    (0, 0, 1), (0, 0, 1, 1.1), (0.5, 0, 0.4, 1), (0, 0.5, 1, 0.4), (0, float("nan"), 1, 1)])
def test_corners_that_are_no_box(corners):
  with pytest.raises(ValueError, match="corners must be y_min"):
    to_box(corners)


@pytest.mark.parametrize("box", [(0, 0, 1000, 1), (-1, 0, 1, 1), (5, 0, 4, 1)])
def test_boxes_out_of_range(box):
  with pytest.raises(ValueError, match="box must be y_min"):
    box_text(box)


def test_each_critic_sees_what_those_before_left():
  seen = []

  def critic(addition):
    def run(record):
      seen.append((record.text, [revision.by for revision in record.history]))
      return record.text + addition

    return run

  start = Description("7", "a", (CAT,))
  done = refine(start, {"first": critic("b"), "second": critic(""), "third": critic("c")})
  assert seen == [("a", ["start"]), ("ab", ["start", "first"]), ("ab", ["start", "first", "second"])]
  assert done.history == tuple(map(Revision, ("start", "first", "second", "third"), ("a", "ab", "ab", "abc")))
  assert (done.text, done.objects, start.history) == ("abc", (CAT,), ())
  again = refine(done, {"fourth": critic("d")})
  assert again.history[:-1] == done.history and again.text == "abcd"
  assert refine(start, {}).text == "a"


def test_critics_must_give_a_text():
  with pytest.raises(TypeError, match="'first' gave NoneType"):
    refine(Description("7", "a"), {"first": lambda record: None})


def test_examples_of_every_task():
  said = {"one": "ab", "two": "ab", "three": "abc"}
  record = refine(Description("7", "a", (CAT, MAT)), {by: lambda _, text=text: text for by, text in said.items()})
  got = [tuple(one) for one in to_examples(record)]
  assert got == [
      ("describe", "describe the image", "abc"), ("object", "describe 300 10 999 500", "a grey cat"),
      ("objects", "list the objects", "mat 300 5 600 999, cat 300 10 999 500"),
      ("refine", "improve: a", "abc"), ("refine", "improve: ab", "abc")]
  assert [one.task for one in to_examples(record, tasks=("refine", "describe"))] == ["refine", "refine", "describe"]


def test_no_example_of_what_is_not_there():
  assert to_examples(Description("7", "")) == []
  assert [one.task for one in to_examples(Description("7", "a"))] == ["describe"]
  back = refine(Description("7", "a"), {"one": lambda r: "", "two": lambda r: "a"})
  assert [one.task for one in to_examples(back)] == ["describe"], "nothing leads to itself, nor from no text"
  with pytest.raises(ValueError, match="tasks must be one of"):
    to_examples(back, tasks=("caption",))
