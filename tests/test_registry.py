"""Cohorts: the paper's facts, and what is refused in a user's CSV."""

from pathlib import Path

import pytest
from conftest import write_cohort

from builder.cohort.registry import Cohort, ModelSpec, load_cohort, questions
from builder.errors import UsageError

PAPER = load_cohort("paper")


def test_the_paper_cohort_has_its_models_pairs_and_architectures():
    robust = [m for m in PAPER.models if m.robust]
    by_dataset = [sum(m.dataset == d for m in robust) for d in ("cifar10", "cifar100", "imagenet")]
    assert by_dataset == [49, 17, 5]
    assert len(PAPER.models) == 114 and len(PAPER.pairs) == 71
    assert len({s.model_id for _, s in PAPER.pairs}) == 43
    assert len({m.architecture for m in PAPER.models}) == 13


def test_every_robust_model_of_the_paper_has_complete_metadata():
    for m in PAPER.models:
        if m.robust:
            for name in ("clean_acc", "autoattack_acc", "extra_data", "title", "authors", "venue",
                         "year", "paper_url", "license", "threat_model", "eps"):  # fmt: skip
                assert getattr(m, name) is not None, (m.model_id, name)
            assert m.eps == ("4/255" if m.dataset == "imagenet" else "8/255")


def test_what_was_never_measured_is_null_not_zero():
    unknown = {m.model_id for m in PAPER.models if m.autoattack_acc is None}
    assert unknown == {
        "cifar10-standard-Rebuffi2021Fixing_106_16_cutmix_ddpm",
        "imagenet-standard-resnet18.tv_in1k",
        "imagenet-standard-resnet50.a1_in1k",
        "imagenet-standard-wide_resnet50_2.racm_in1k",
    }
    assert all(m.title != "" and m.clean_acc != 0 for m in PAPER.models)


def test_the_published_names_of_models_keep_their_licences():
    licences = {m.model_id: m.license for m in PAPER.models}
    assert licences["cifar10-robust-Ding2020MMA"] == "CC-BY-NC-SA-4.0"
    assert licences["cifar10-standard-Carmon2019Unlabeled"] == "CC-BY-SA-4.0"
    assert None not in licences.values()


def test_models_are_selected_by_pattern_and_order_is_kept():
    names = [m.model_id for m in PAPER.select("cifar10-*R18*,imagenet-robust-*").models]
    assert len(names) == 12 and names[0].startswith("cifar10-robust-Gowal2021Improving_R18")
    with pytest.raises(UsageError, match="no model of cohort 'paper' matches 'cifar10-Nobody'"):
        PAPER.select("cifar10-*R18*,cifar10-Nobody")


@pytest.mark.parametrize(
    ("dataset", "threat_model", "eps", "expected"),
    [
        ("cifar10", "Linf", "16/255", 16 / 255),
        ("cifar10", "Linf", None, 8 / 255),
        ("cifar10", None, None, 8 / 255),
        ("imagenet", None, None, 4 / 255),
        ("cifar10", "L2", "0.5", None),
        ("imagenet", "L2", None, None),
        ("cifar10", "corruptions", "8/255", None),
        ("cifar10", None, "16/255", 16 / 255),
        ("cifar10", None, "0.5", 0.5),
    ],
)
def test_the_eps_of_another_threat_model_is_no_linf_radius(
    dataset: str, threat_model: str | None, eps: str | None, expected: float | None
):
    model = ModelSpec("n", dataset, True, "A", "c", "x", threat_model=threat_model, eps=eps)
    assert model.eps_value == expected


def test_a_pair_needs_both_members_in_the_selection():
    assert PAPER.select("*-robust-*").pairs == []


def test_an_unknown_cohort_names_the_known_ones():
    with pytest.raises(UsageError, match="unknown cohort 'papre'") as e:
        load_cohort("papre")
    assert "mini, paper" in e.value.hint
    with pytest.raises(UsageError, match="cannot read"):
        load_cohort("none.csv")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "checkpoint,",
            "chekpoint,",
            "missing column.* 'checkpoint'; unknown column.* 'chekpoint'",
        ),
        ("true", "yes", "row 2: column 'robust' is 'yes': expected true or false"),
        ("cifar10,", "cifar-10,", "column 'dataset' is 'cifar-10': expected one of cifar10"),
        ("alpha,cifar10,true", "a/b,cifar10,true", "column 'network' is 'a/b'"),
        ("alpha,cifar10,true", ",cifar10,true", "column 'network' is empty; it is required"),
        ("beta,cifar10,true", "alpha,cifar10,true", "'cifar10-robust-alpha' occurs twice"),
        ("nowhere.pt,alpha", "nowhere.pt,gamma", "no such cifar10 model"),
        ("nowhere.pt,beta", "nowhere.pt,alpha", "pair of different architectures"),
        ("nowhere.pt,\n", "nowhere.pt,alpha\n", "but is itself standard"),
        ("nowhere.pt,\n", "nowhere.pt\n", "expected 7 fields, found 6"),
    ],
)
def test_a_wrong_csv_is_one_message(tmp_path: Path, old: str, new: str, said: str):
    path = write_cohort(tmp_path / "c.csv")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=said):
        load_cohort(str(path))


def test_a_partner_in_other_letters_is_named_and_makes_no_silent_zero_pairs(tmp_path: Path):
    path = write_cohort(tmp_path / "c.csv")
    path.write_text(path.read_text().replace("nowhere.pt,alpha", "nowhere.pt,Alpha", 1))
    with pytest.raises(UsageError, match="standard_network 'Alpha', no such cifar10 model") as e:
        load_cohort(str(path))
    assert e.value.hint == "did you mean 'alpha'?"


@pytest.mark.parametrize("year", ["202211", "22", "-2022", "2022.5", "soon"])
def test_a_year_that_is_none_is_one_message(tmp_path: Path, year: str):
    path = write_cohort(tmp_path / "c.csv")
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},year", f"{first},{year}", *(f"{r}," for r in rest)]))
    with pytest.raises(UsageError, match=f"row 2: column 'year' is '{year}'"):
        load_cohort(str(path))
    path.write_text(path.read_text().replace(f",{year}\n", ",2022\n"))
    assert load_cohort(str(path)).models[0].year == 2022


def test_an_empty_csv_and_a_binary_file_are_one_message(tmp_path: Path):
    path = write_cohort(tmp_path / "c.csv")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match="no rows"):
        load_cohort(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        load_cohort(str(path))


def with_columns(tmp_path: Path, **columns: str) -> Path:
    """A cohort whose first model has these columns besides."""
    path = write_cohort(tmp_path / "c.csv")
    header, first, *rest = path.read_text().splitlines()
    lines = [f"{header},{','.join(columns)}", f"{first},{','.join(columns.values())}"]
    path.write_text("\n".join([*lines, *(r + "," * len(columns) for r in rest)]))
    return path


@pytest.mark.parametrize(
    ("threat_model", "eps", "recorded", "radius"),
    [
        ("Linf", "8", "8/255", 8 / 255),
        ("linf", "8.0", "8/255", 8 / 255),
        ("L_inf", "1", "1/255", 1 / 255),
        ("LINF", "8 / 255", "8/255", 8 / 255),
        ("l-infinity", "0.031", "0.031", 0.031),
        ("Linf", "3.1e-2", "3.1e-2", 0.031),
        ("Linf", "0.5/255", "0.5/255", 0.5 / 255),
        ("", "8/255", "8/255", 8 / 255),
        ("", "16", "16/255", 16 / 255),
        ("l2", "0.5", "0.5", None),
        ("L_2", "3", "3", None),
    ],
)
def test_an_eps_is_measured_as_it_is_recorded_whatever_its_spelling(
    tmp_path: Path, threat_model: str, eps: str, recorded: str, radius: float | None
):
    cohort = load_cohort(str(with_columns(tmp_path, threat_model=threat_model, eps=eps)))
    assert cohort.models[0].eps == recorded
    expected = None if radius is None else pytest.approx(radius, rel=1e-15)
    assert cohort.models[0].eps_value == expected


@pytest.mark.parametrize(
    ("spelled", "recorded"),
    [
        *(("linf", "Linf"), ("L_inf", "Linf"), ("L∞", "Linf"), ("l2", "L2"), ("L-2", "L2")),
        *(("Corruptions", "corruptions"), ("common corruptions", "corruptions")),
        ("patch", "patch"),
    ],
)
def test_threat_models_are_recorded_in_one_spelling(tmp_path: Path, spelled: str, recorded: str):
    cohort = load_cohort(str(with_columns(tmp_path, threat_model=spelled)))
    assert cohort.models[0].threat_model == recorded


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[
            ("eps", e)
            for e in ("1e400", "1e99", "nan", "inf", "-8/255", "0", "8/0", "8/255/2", "½")
        ],
        *[("eps", e) for e in ("8.5", "300", "16/8", "8px")],
        *[("clean_acc", a) for a in ("nan", "inf", "1e400", "-1", "101", "9_3", "93/0", "high")],
        *[("autoattack_acc", a) for a in ("nan", "100.5")],
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, column: str, value: str):
    wanted = "expected percent" if column.endswith("acc") else "expected"
    with pytest.raises(UsageError, match=f"row 2: column '{column}' is '{value}': {wanted}"):
        load_cohort(str(with_columns(tmp_path, **{column: value})))


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        ({"clean_acc": "0.93"}, "clean_acc is 0.93 percent; did you mean 93?"),
        ({"autoattack_acc": "0.61"}, "autoattack_acc is 0.61 percent; did you mean 61?"),
        ({"clean_acc": "80", "autoattack_acc": "81"}, "autoattack_acc 81.0 exceeds clean_acc 80.0"),
        ({"eps": "8/255"}, "eps 8/255 has no threat_model; it is read as Linf"),
        ({"threat_model": "Linf", "eps": "0.5"}, "a Linf radius of 0.5"),
        ({"threat_model": "patch", "eps": "5"}, "threat_model is 'patch'"),
        ({"threat_model": "L2", "eps": "0.5", "clean_acc": "93%", "autoattack_acc": "61"}, None),
        ({"threat_model": "Linf", "eps": "8", "clean_acc": "93 %", "autoattack_acc": "0"}, None),
    ],
)
def test_what_is_odd_is_asked_and_what_is_not_is_not(
    tmp_path: Path, columns: dict[str, str], asked: str | None
):
    said = questions(load_cohort(str(with_columns(tmp_path, **columns))))
    assert len(said) == (asked is not None)
    assert all(s.startswith("cifar10-robust-alpha: ") and asked in s for s in said)


def test_the_shipped_cohorts_raise_no_question_and_keep_their_digests():
    mini = load_cohort("mini")
    assert questions(PAPER) == questions(mini) == []
    assert PAPER.digest.startswith("82e31113827934b5")
    standard = [ModelSpec("n", "cifar10", False, "A", "c", "x", clean_acc=90, autoattack_acc=0.2)]
    assert questions(Cohort("own", tuple(standard))) == []
