"""Packages leave a system, and its database, without those that stay losing a file."""

import pytest

from llm_image import ImageError, system

STATUS = """\
Package: libz
Status: install ok installed
Version: 1

Package: perl.5-base
Version: 5

Package: perl
Status: install ok installed
Description: a language
 that servers do not speak
Version: 5

"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "bin").symlink_to("usr/bin")
    files = {
        "usr/lib/libz.so.1.3": "z",
        "usr/bin/perl": "perl",
        "usr/share/perl/strict.pm": "pm",
        "usr/share/doc/both": "shared",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "usr/lib/libz.so.1").symlink_to("libz.so.1.3")
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info.parent / "status").write_text(STATUS)
    (info.parent / "status-old").write_text(STATUS)
    libz = ["/.", "/usr", "/usr/lib/libz.so.1", "/usr/lib/libz.so.1.3", "/usr/share/doc/both"]
    (info / "libz:amd64.list").write_text("\n".join(libz) + "\n")
    perl = ["/.", "/bin/perl", "/usr/share/perl", "/usr/share/perl/strict.pm"]
    (info / "perl.list").write_text("\n".join([*perl, "/usr/share/doc/both"]) + "\n")
    (info / "perl.postinst").write_text("")
    (info / "perl.5-base.list").write_text("")
    return tmp_path


def test_a_package_goes_with_its_files_and_its_entry(root):
    database = system.Database(root)
    saved = system.remove_packages(database, ["perl"])
    assert saved == len("perl" + "pm")
    assert not (root / "usr/bin/perl").exists()
    assert not (root / "usr/share/perl").exists()
    assert system.Database(root).names == {"libz", "perl.5-base"}
    left = {path.name for path in root.glob("var/lib/dpkg/info/*")}
    assert left == {"libz:amd64.list", "perl.5-base.list"}
    assert not (root / "var/lib/dpkg/status-old").exists()


def test_what_a_package_that_stays_shares_or_links_stays(root):
    system.remove_packages(system.Database(root), ["perl"])
    assert (root / "usr/share/doc/both").exists()
    assert (root / "usr/lib/libz.so.1").read_text() == "z"


def test_owners_are_found_through_linked_folders(root):
    database = system.Database(root)
    assert database.owners([root / "bin" / "perl"]) == {"perl"}
    assert database.owners([root / "usr/lib/libz.so.1"]) == {"libz"}
    assert database.owners([root / "nowhere"]) == set()


def test_no_file_is_left_that_runs_as_its_owner_or_that_all_may_write(root):
    (root / "usr/bin/perl").chmod(0o4755)
    (root / "usr/share/doc").chmod(0o1777)
    changed = list(system.protect(root))
    assert changed == [root / "usr/bin/perl", root / "usr/share/doc"]
    assert (root / "usr/bin/perl").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr/share/doc").stat().st_mode & 0o002 == 0
    assert list(system.protect(root)) == []


def test_another_system_than_debian_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is no Debian"):
        system.Database(tmp_path)
